# One CMake target per room.
#
#   flatquant_room(NAME [DEPS room|library ...] [PRIVATE_DEPS library ...] [EXCLUDE regex])
#
# builds flatquant_NAME from every .cc file of the calling folder (and the
# folders below it), and flatquant_NAME_test from every test file. Test files
# are named test.cc or *_test.cc. Where Google Benchmark is installed, every
# bench.cc goes into flatquant_NAME_bench; a *_bench.cc is a program of its own
# and not part of the build.
#
# A file's suffix alone selects its instruction set:
#   *avx512.cc        AVX-512 F/BW/DQ/VL
#   *avx512vnni.cc    the above + VNNI
#   *avx512bf16.cc    the above + BF16
#   *amxbf16.cc       AVX-512, VNNI, BF16 + AMX-BF16
#   *amxint8.cc       AVX-512, VNNI + AMX-INT8
# Everything else (*avx2.cc too) is built for x86-64-v3: AVX2, FMA and F16C are
# what the project asks of every x86 machine, so plain loops vectorise. Wider
# instruction sets are reached only through the run-time dispatch.

include(GoogleTest OPTIONAL)
find_package(benchmark QUIET)

set(FLATQUANT_AVX512_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl)

function(flatquant_isa_flags file out)
  set(flags "")
  if(file MATCHES "avx512\\.cc$")
    set(flags ${FLATQUANT_AVX512_FLAGS})
  elseif(file MATCHES "avx512vnni\\.cc$")
    set(flags ${FLATQUANT_AVX512_FLAGS} -mavx512vnni)
  elseif(file MATCHES "avx512bf16\\.cc$")
    set(flags ${FLATQUANT_AVX512_FLAGS} -mavx512vnni -mavx512bf16)
  elseif(file MATCHES "amxbf16\\.cc$")
    set(flags ${FLATQUANT_AVX512_FLAGS} -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16)
  elseif(file MATCHES "amxint8\\.cc$")
    set(flags ${FLATQUANT_AVX512_FLAGS} -mavx512vnni -mamx-tile -mamx-int8)
  endif()
  set(${out} "${flags}" PARENT_SCOPE)
endfunction()

# Flags that every target of the project shares.
function(flatquant_target_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  # GCC 12 reports std::string's own code under -Wrestrict (its bug 105651).
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
                                           -fno-math-errno -fno-trapping-math)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_options(${target} PRIVATE -march=x86-64-v3)
  endif()
  if(FLATQUANT_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(FLATQUANT_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${FLATQUANT_SANITIZE} -fno-omit-frame-pointer
                                            -fno-sanitize-recover=all)
    # With its checks in between, GCC takes the standard library's own values (std::regex's,
    # std::function's) for uninitialized.
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(${target} PUBLIC -fsanitize=${FLATQUANT_SANITIZE})
  endif()
endfunction()

# Adds a GoogleTest executable whose cases ctest lists one by one.
# LABELS, if given, are ctest labels.
function(flatquant_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT FLATQUANT_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} flatquant_test_support GTest::gmock GTest::gtest_main)
  flatquant_target_options(${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set(properties TIMEOUT ${ARG_TIMEOUT})
  if(ARG_LABELS)
    list(APPEND properties LABELS ${ARG_LABELS})
  endif()
  # LibTorch's libraries, read from a slow disk for the first time, take half a minute.
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 300 TEST_PREFIX "${name}."
                       PROPERTIES ${properties})
endfunction()

function(flatquant_room name)
  cmake_parse_arguments(ARG "" "EXCLUDE" "DEPS;PRIVATE_DEPS;TEST_DEPS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} *.cc)
  if(ARG_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX ${ARG_EXCLUDE})
  endif()
  set(benches ${sources})
  list(FILTER benches INCLUDE REGEX "(^|/)bench\\.cc$")
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "(^|/|_)test\\.cc$")
  list(FILTER sources EXCLUDE REGEX "(^|/|_)(test|bench)\\.cc$")

  foreach(source IN LISTS sources)
    flatquant_isa_flags(${source} flags)
    if(flags)
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${flags}")
    endif()
  endforeach()

  set(target flatquant_${name})
  if(sources)
    add_library(${target} STATIC ${sources})
    target_link_libraries(${target} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
    flatquant_target_options(${target})
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${ARG_DEPS})
    target_include_directories(${target} INTERFACE ${PROJECT_SOURCE_DIR})
  endif()
  if(tests)
    flatquant_test(${target}_test SOURCES ${tests} DEPS ${target} ${ARG_TEST_DEPS})
  endif()
  if(benches AND benchmark_FOUND)
    add_executable(${target}_bench ${benches})
    target_link_libraries(${target}_bench PRIVATE ${target} benchmark::benchmark benchmark::benchmark_main)
    flatquant_target_options(${target}_bench)
  endif()
endfunction()
