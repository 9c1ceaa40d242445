#include <dlfcn.h>

#include <string>

#include "flatquant/base/error.h"
#include "flatquant/kernels/gemm_float/cublas_lt.cuh"

namespace flatquant {
namespace {

CublasLtFunctions Load() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  const auto fail = [&](const std::string& what) {
    throw Error("cuda.no_cublas", name, what,
                "install cuBLAS " + std::to_string(CUBLAS_VER_MAJOR) +
                    " of the CUDA toolkit and name its folder in LD_LIBRARY_PATH");
  };
  // Never closed: the library outlives every handle.
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(std::string("cannot be loaded: ") + dlerror());
  CublasLtFunctions functions;
#define FLATQUANT_CUBLAS_LT(function)                                                             \
  functions.function = reinterpret_cast<decltype(functions.function)>(dlsym(library, #function)); \
  if (functions.function == nullptr) fail("has no " #function);
#include "flatquant/kernels/gemm_float/cublas_lt_functions.inc"
#undef FLATQUANT_CUBLAS_LT
  return functions;
}

}  // namespace

const CublasLtFunctions& CublasLt() {
  static const CublasLtFunctions functions = Load();
  return functions;
}

}  // namespace flatquant
