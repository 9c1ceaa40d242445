#include "flatquant/kernels/gemm_float/cuda_gemm_float.h"

#include <map>
#include <tuple>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/device_buffer.cuh"
#include "flatquant/kernels/gemm_float/cublas_lt.cuh"

namespace flatquant {
namespace {

// What NVIDIA asks for on Hopper; enough for any split of the sums.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

void CheckLt(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error("cuda.failed", call,
              std::string("cuBLASLt says ") + CublasLt().cublasLtGetStatusString(status),
              "check the CUDA toolkit and the driver");
}
#define FLATQUANT_LT(call) CheckLt((call), #call)

cudaDataType_t DataType(DType type) {
  switch (type) {
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      FLATQUANT_CHECK(type == DType::kF32);
      return CUDA_R_32F;
  }
}

// cuBLASLt's matrices are column by column: a row-major [m, n] is its [n, m]. So it
// computes y^T [rows, tokens] = weight [rows, cols] x^T.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};

  Plan(cublasLtHandle_t handle, const CudaGemmFloatArgs& args) {
    FLATQUANT_LT(CublasLt().cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    Set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    if (args.bias != nullptr) {
      const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
      Set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
      const cudaDataType_t type = DataType(args.dtype);
      Set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type);
      Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
    }
    const cudaDataType_t in = DataType(args.dtype);
    FLATQUANT_LT(
        CublasLt().cublasLtMatrixLayoutCreate(&weight, in, args.cols, args.rows, args.cols));
    FLATQUANT_LT(
        CublasLt().cublasLtMatrixLayoutCreate(&x, in, args.cols, args.tokens, args.x_stride));
    FLATQUANT_LT(CublasLt().cublasLtMatrixLayoutCreate(&y, DataType(args.y_dtype), args.rows,
                                                       args.tokens, args.y_stride));
    cublasLtMatmulPreference_t preference = nullptr;
    FLATQUANT_LT(CublasLt().cublasLtMatmulPreferenceCreate(&preference));
    FLATQUANT_LT(CublasLt().cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
        sizeof(kWorkspaceBytes)));
    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    FLATQUANT_LT(CublasLt().cublasLtMatmulAlgoGetHeuristic(handle, product, weight, x, y, y,
                                                           preference, 1, &best, &found));
    CublasLt().cublasLtMatmulPreferenceDestroy(preference);
    if (found == 0) CheckLt(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic");
    algorithm = best.algo;
  }
  ~Plan() {
    CublasLt().cublasLtMatrixLayoutDestroy(weight);
    CublasLt().cublasLtMatrixLayoutDestroy(x);
    CublasLt().cublasLtMatrixLayoutDestroy(y);
    CublasLt().cublasLtMatmulDescDestroy(product);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    FLATQUANT_LT(
        CublasLt().cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)));
  }
};

// What an algorithm depends on.
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, bool>;

}  // namespace

struct CudaGemmFloat::State {
  cublasLtHandle_t handle = nullptr;
  DeviceBuffer<uint8_t> workspace{kWorkspaceBytes};
  std::map<Shape, Plan> plans;
};

CudaGemmFloat::CudaGemmFloat() : state_(std::make_unique<State>()) {
  FLATQUANT_LT(CublasLt().cublasLtCreate(&state_->handle));
}

CudaGemmFloat::~CudaGemmFloat() {
  state_->plans.clear();
  CublasLt().cublasLtDestroy(state_->handle);
}

void CudaGemmFloat::operator()(const CudaGemmFloatArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.y_dtype == args.dtype || (args.bias == nullptr && args.residual == nullptr));
  if (args.tokens == 0) return;
  const Shape shape{args.tokens,   args.rows,  args.cols,    args.x_stride,
                    args.y_stride, args.dtype, args.y_dtype, args.bias != nullptr};
  Plan& plan = state_->plans.try_emplace(shape, state_->handle, args).first->second;
  if (args.bias != nullptr) plan.Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args.bias);
  const float one = 1;
  const float beta = args.residual != nullptr ? 1 : 0;
  const void* added = args.residual != nullptr ? args.residual : args.y;
  FLATQUANT_LT(CublasLt().cublasLtMatmul(
      state_->handle, plan.product, &one, args.weight, plan.weight, args.x, plan.x, &beta, added,
      plan.y, args.y, plan.y, &plan.algorithm, state_->workspace.get(), kWorkspaceBytes, stream));
}

}  // namespace flatquant
