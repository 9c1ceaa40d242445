#pragma once

#include <span>
#include <vector>

#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/gemm_float/cuda_gemm_float.h"
#include "flatquant/runtime/backend.h"
#include "flatquant/runtime/cuda/cuda_cache.h"
#include "flatquant/runtime/cuda/cuda_model.h"
#include "flatquant/runtime/cuda/cuda_workspace.h"
#include "flatquant/runtime/profile.h"

namespace flatquant {

// Consecutive rows of a pass that one attention call serves: of sequences of one pool, the
// next token of each, or several tokens of each.
struct CudaRun {
  const CudaSlotPool* pool = nullptr;
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<CudaAttentionSegment> prompts;  // their rows count from first_row; none: decode

  bool is_decode() const { return prompts.empty(); }
};

// The runs of a pass; segments' caches are CudaSequenceCaches. Overwrites `runs`.
void CutIntoRuns(std::span<const Segment> segments, std::vector<CudaRun>* runs);

// The rotation of all positions that a cache can hold: float [positions, head_dim / 2].
struct CudaRotation {
  int64_t positions = 0;
  DeviceBuffer<float> cos;
  DeviceBuffer<float> sin;
};

// The steps of a block (block_flow.h) on a GPU. Every step launches and returns.
class CudaOps {
 public:
  struct Pass {
    const CudaModel& model;
    std::span<const CudaRun> runs;
    CudaRows rows;
    const CudaRotation& rotation;
    CudaWorkspace& work;
    CudaGemmFloat& gemm;
    CudaStream stream;
    Profile* profile = nullptr;
  };
  CudaOps(const Pass& pass, size_t layer)
      : pass_(pass), block_(pass.model.blocks[layer]), layer_(layer) {}

  void EnterNormed(Site site);
  void Enter(Site site);
  void ApplyLinears(Site site);
  void AddLinear(Site site);
  void StoreHeads();
  void Attend();

 private:
  CudaKronQuantizeArgs SiteArgs(const CudaSite& site) const;
  // One product: y [rows, y_stride], residual as there or nullptr.
  void Multiply(const CudaSite& site, const CudaLinears& linears, const void* residual, void* y,
                int64_t y_stride);

  const Pass& pass_;
  const CudaBlock& block_;
  size_t layer_;
};

// Bytes of work.attention that the runs need.
size_t CudaAttentionBytes(const CudaModel& model, std::span<const CudaRun> runs);

// work.stream = the embeddings of the rows' ids.
void CudaEmbedRows(const CudaOps::Pass& pass);

// logits [rows, vocab], float, of `rows` rows of a residual stream [rows, hidden]; uses
// work.site, work.codes and work.scales.
void CudaComputeLogits(const CudaOps::Pass& pass, const void* stream_rows, int64_t rows,
                       float* logits);

}  // namespace flatquant
