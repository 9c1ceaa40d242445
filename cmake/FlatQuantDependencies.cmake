# Every library that the project uses is found here, once. ARCHITECTURE.md says
# what each is for; tools/install-deps.sh installs them on Debian 12.
find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)

# oneDNN's own CMake package asks for OpenCL, which the CPU engine does not use.
find_path(DNNL_INCLUDE_DIR dnnl.h REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
add_library(DNNL::dnnl UNKNOWN IMPORTED)
set_target_properties(DNNL::dnnl PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY}
                      INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR})

pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(sentencepiece REQUIRED IMPORTED_TARGET sentencepiece)
if(FLATQUANT_COMPRESS)
  # Before LibTorch, whose package may turn the language on; FlatQuantCuda.cmake says why these.
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
  endif()
  set(asked_architectures ${CMAKE_CUDA_ARCHITECTURES})
  find_package(Torch REQUIRED)
  if(TARGET torch_cuda)
    # It has written its own choice of GPUs into the language's flags; ours is made per target.
    set(CMAKE_CUDA_ARCHITECTURES ${asked_architectures})
    set(CMAKE_CUDA_FLAGS "$CACHE{CMAKE_CUDA_FLAGS}")
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      enable_language(CUDA)
      find_package(CUDAToolkit REQUIRED)
    endif()
  endif()
endif()
if(FLATQUANT_TESTS)
  find_package(GTest REQUIRED)
endif()
