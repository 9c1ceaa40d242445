# The CUDA half of flatquant/kernels: every *.cu file below that room.
#
#   flatquant_kernels_cuda        the kernels, one static library
#   flatquant_kernels_cuda_test   *_test.cu and cuda_test.cu; skips where there is no GPU
#   flatquant_kernels_cuda_bench  *_bench.cu and cuda_bench.cu
#
# FLATQUANT_CUDA is ON, OFF or AUTO (on when nvcc is found). A file's suffix selects
# its architecture, as for the x86 files: *_sm90.cu is built for sm_90a alone (wgmma
# and TMA), everything else for CMAKE_CUDA_ARCHITECTURES. The default there is two
# targets, because code for 8.0 also runs on 8.6 and 8.9 and each target costs
# another compilation of every kernel.

set(FLATQUANT_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF or AUTO")
set_property(CACHE FLATQUANT_CUDA PROPERTY STRINGS ON OFF AUTO)

if(FLATQUANT_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(FLATQUANT_WITH_CUDA ${CMAKE_CUDA_COMPILER})
else()
  set(FLATQUANT_WITH_CUDA ${FLATQUANT_CUDA})
endif()
if(NOT FLATQUANT_WITH_CUDA)
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

function(flatquant_cuda_options target)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  # By hand, because CMake 3.25 does not know the language levels of newer compilers.
  target_compile_options(${target} PRIVATE -std=c++20 -Xcompiler=-Wall,-Wextra --expt-relaxed-constexpr --extended-lambda)
  if(FLATQUANT_WERROR)
    target_compile_options(${target} PRIVATE -Xcompiler=-Werror -Werror=all-warnings)
  endif()
endfunction()

set(room ${PROJECT_SOURCE_DIR}/flatquant/kernels)
file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${room}/*.cu)
set(tests ${sources})
list(FILTER tests INCLUDE REGEX "_test\\.cu$")
set(benches ${sources})
list(FILTER benches INCLUDE REGEX "_bench\\.cu$")
list(FILTER sources EXCLUDE REGEX "_(test|bench)\\.cu$")
set(sm90 ${sources})
list(FILTER sm90 INCLUDE REGEX "_sm90\\.cu$")
list(FILTER sources EXCLUDE REGEX "_sm90\\.cu$")

add_library(flatquant_kernels_cuda_sm90 OBJECT ${sm90})
set_target_properties(flatquant_kernels_cuda_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real)
flatquant_cuda_options(flatquant_kernels_cuda_sm90)

add_library(flatquant_kernels_cuda STATIC ${sources} $<TARGET_OBJECTS:flatquant_kernels_cuda_sm90>)
flatquant_cuda_options(flatquant_kernels_cuda)
target_link_libraries(flatquant_kernels_cuda PUBLIC flatquant_base CUDA::cudart_static)

if(FLATQUANT_TESTS)
  add_executable(flatquant_kernels_cuda_test ${tests})
  flatquant_cuda_options(flatquant_kernels_cuda_test)
  target_link_libraries(flatquant_kernels_cuda_test PRIVATE flatquant_kernels_cuda GTest::gtest_main)
  gtest_discover_tests(flatquant_kernels_cuda_test DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 300
                       TEST_PREFIX "flatquant_kernels_cuda_test." PROPERTIES TIMEOUT 300)
endif()

add_executable(flatquant_kernels_cuda_bench EXCLUDE_FROM_ALL ${benches})
flatquant_cuda_options(flatquant_kernels_cuda_bench)
target_link_libraries(flatquant_kernels_cuda_bench PRIVATE flatquant_kernels_cuda)
