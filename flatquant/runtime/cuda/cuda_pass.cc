#include "flatquant/runtime/cuda/cuda_pass.h"

#include <algorithm>
#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/kernels/embedding/cuda_embedding.h"
#include "flatquant/kernels/gemm_float/cuda_gemm_w4a16.h"
#include "flatquant/kernels/gemm_int/cuda_gemm_int8.h"
#include "flatquant/kernels/kron_quantize/cuda_dequantize.h"

namespace flatquant {
namespace {

// Adds a step's time to the profile, if there is one: then, and only then, it waits for
// the GPU.
class CudaPhase {
 public:
  CudaPhase(const CudaOps::Pass& pass, Phase phase) : pass_(pass), timer_(pass.profile, phase) {}
  ~CudaPhase() {
    if (pass_.profile != nullptr) cudaStreamSynchronize(pass_.stream);
  }

 private:
  const CudaOps::Pass& pass_;
  PhaseTimer timer_;  // destroyed last: the wait counts
};

template <typename T>
T* At(const DeviceBuffer<T>& buffer, int64_t offset) {
  return buffer.get() + offset;
}

}  // namespace

void CutIntoRuns(std::span<const Segment> segments, std::vector<CudaRun>* runs) {
  runs->clear();
  for (const Segment& segment : segments) {
    const auto& cache = static_cast<const CudaSequenceCache&>(*segment.cache);
    const bool is_decode = segment.tokens == 1;
    const bool continues = !runs->empty() && runs->back().pool == &cache.pool() &&
                           runs->back().is_decode() == is_decode &&
                           std::ssize(runs->back().prompts) < kCudaMaxSegments;
    if (!continues) runs->push_back({&cache.pool(), segment.row_begin, 0, {}});
    CudaRun& run = runs->back();
    if (!is_decode) {
      run.prompts.push_back({cache.slot(), static_cast<int32_t>(segment.first_position),
                             static_cast<int32_t>(run.rows), static_cast<int32_t>(segment.tokens)});
    }
    run.rows += segment.tokens;
  }
}

CudaKronQuantizeArgs CudaOps::SiteArgs(const CudaSite& site) const {
  CudaWorkspace& work = pass_.work;
  CudaKronQuantizeArgs args;
  args.dtype = pass_.model.dtype;
  args.width = site.width;
  args.tokens = pass_.rows.rows;
  args.transform = site.transform;
  args.bits = site.act_bits <= 8 ? site.act_bits : 16;
  args.y = work.site.get();
  args.clip_count = static_cast<int>(site.clips.size());
  std::copy(site.clips.begin(), site.clips.end(), args.clips);
  args.codes = work.codes.get();
  args.code_stride = work.code_stride;
  args.scales = work.scales.get();
  return args;
}

void CudaOps::EnterNormed(Site which) {
  const CudaPhase phase(pass_, Phase::kSites);
  const bool is_attention = which == Site::kAttnIn;
  CudaKronQuantizeArgs args = SiteArgs(block_.site(which));
  args.input = CudaSiteInput::kRmsNorm;
  args.x = pass_.work.stream.get();
  args.x_stride = pass_.model.config.hidden;
  args.norm_weight = is_attention ? block_.input_norm.get() : block_.post_attention_norm.get();
  args.eps = static_cast<float>(pass_.model.config.rms_eps);
  CudaKronQuantize(args, pass_.stream);
}

void CudaOps::Enter(Site which) {
  const CudaPhase phase(pass_, Phase::kSites);
  CudaKronQuantizeArgs args = SiteArgs(block_.site(which));
  if (which == Site::kAttnOut) {
    args.x = pass_.work.mixed.get();
    args.x_stride = pass_.model.config.q_width();
  } else {
    args.input = CudaSiteInput::kSwiglu;
    args.x = pass_.work.output.get();
    args.up = At(pass_.work.output, RoundUpTo(pass_.model.config.ffn, 8));
    args.x_stride = block_.site(Site::kMlpIn).output;
  }
  CudaKronQuantize(args, pass_.stream);
}

void CudaOps::Multiply(const CudaSite& site, const CudaLinears& linears, const void* residual,
                       void* y, int64_t y_stride) {
  CudaWorkspace& work = pass_.work;
  const int64_t rows = pass_.rows.rows;
  const int64_t clip = static_cast<int64_t>(linears.clip);
  const int8_t* codes = At(work.codes, clip * rows * work.code_stride);
  const float* scales = At(work.scales, clip * rows);
  if (linears.is_packed && site.act_bits <= 8) {
    CudaGemmIntArgs args;
    args.act = codes;
    args.act_stride = work.code_stride;
    args.act_scale = scales;
    args.tokens = rows;
    args.weights = linears.weights();
    args.dtype = pass_.model.dtype;
    args.residual = residual;
    args.y = y;
    args.y_stride = y_stride;
    CudaGemmInt(args, pass_.stream);
    return;
  }
  if (linears.is_packed) {
    CudaGemmW4A16Args args;
    args.dtype = pass_.model.dtype;
    args.x = work.site.get();
    args.x_stride = site.width;
    args.tokens = rows;
    args.weights = linears.weights();
    args.residual = residual;
    args.y = y;
    args.y_stride = y_stride;
    CudaGemmW4A16(args, pass_.stream);
    return;
  }
  if (site.act_bits <= 8) {
    CudaDequantize(
        {codes, work.code_stride, scales, rows, site.width, pass_.model.dtype, work.site.get()},
        pass_.stream);
  }
  CudaGemmFloatArgs args;
  args.dtype = pass_.model.dtype;
  args.x = work.site.get();
  args.x_stride = site.width;
  args.tokens = rows;
  args.weight = linears.floats.get();
  args.rows = linears.rows;
  args.cols = linears.cols;
  args.bias = linears.bias_16.size() > 0 ? linears.bias_16.get() : nullptr;
  args.residual = residual;
  args.y_dtype = pass_.model.dtype;
  args.y = y;
  args.y_stride = y_stride;
  pass_.gemm(args, pass_.stream);
}

void CudaOps::ApplyLinears(Site which) {
  const CudaPhase phase(pass_, Phase::kLinears);
  const CudaSite& site = block_.site(which);
  for (const CudaLinears& linears : site.linears) {
    Multiply(site, linears, nullptr, At(pass_.work.output, linears.first_row), site.output);
  }
}

void CudaOps::AddLinear(Site which) {
  const CudaPhase phase(pass_, Phase::kLinears);
  const CudaSite& site = block_.site(which);
  uint16_t* stream = pass_.work.stream.get();
  Multiply(site, site.linears[0], stream, stream, pass_.model.config.hidden);
}

void CudaOps::StoreHeads() {
  const CudaPhase phase(pass_, Phase::kCache);
  const ModelConfig& config = pass_.model.config;
  const int64_t stride = block_.site(Site::kAttnIn).output;
  for (const CudaRun& run : pass_.runs) {
    CudaQuantizeKvArgs args;
    args.dtype = pass_.model.dtype;
    args.qkv = At(pass_.work.output, run.first_row * stride);
    args.qkv_stride = stride;
    args.tokens = run.rows;
    args.heads = config.heads;
    args.positions = pass_.rows.positions() + run.first_row;
    args.slots = pass_.rows.slots() + run.first_row;
    if (config.qk_norm) {
      args.q_norm = block_.q_norm.get();
      args.k_norm = block_.k_norm.get();
      args.norm_eps = static_cast<float>(config.rms_eps);
    }
    args.cos = pass_.rotation.cos.get();
    args.sin = pass_.rotation.sin.get();
    if (block_.q_transform.size() > 0) args.q_transform = block_.q_transform.get();
    if (block_.k_transform.size() > 0) args.k_transform = block_.k_transform.get();
    args.k_clip = block_.k_clip;
    args.v_clip = block_.v_clip;
    args.k = run.pool->k(layer_);
    args.v = run.pool->v(layer_);
    args.q = At(pass_.work.q, run.first_row * config.q_width());
    CudaQuantizeKv(args, pass_.stream);
  }
}

void CudaOps::Attend() {
  const CudaPhase phase(pass_, Phase::kAttention);
  const ModelConfig& config = pass_.model.config;
  for (const CudaRun& run : pass_.runs) {
    const auto fill = [&](CudaAttentionArgs& args) {
      args.dtype = pass_.model.dtype;
      args.q = At(pass_.work.q, run.first_row * config.q_width());
      args.y = At(pass_.work.mixed, run.first_row * config.q_width());
      args.tokens = run.rows;
      args.heads = config.heads;
      args.window = config.sliding_window.value_or(0);
      args.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
      args.k = run.pool->k(layer_);
      args.v = run.pool->v(layer_);
    };
    if (!run.is_decode()) {
      CudaAttentionPrefillArgs args;
      fill(args);
      args.segments = run.prompts.data();
      args.segment_count = std::ssize(run.prompts);
      CudaAttentionPrefill(args, pass_.stream);
      continue;
    }
    CudaAttentionDecodeArgs args;
    fill(args);
    args.slots = pass_.rows.slots() + run.first_row;
    args.lengths = pass_.rows.lengths() + run.first_row;
    args.max_length = run.pool->capacity();
    args.workspace = pass_.work.attention.get();
    CudaAttentionDecode(args, pass_.stream);
  }
}

size_t CudaAttentionBytes(const CudaModel& model, std::span<const CudaRun> runs) {
  int64_t most = 0;
  for (const CudaRun& run : runs) {
    if (!run.is_decode()) continue;
    CudaAttentionDecodeArgs args;
    args.tokens = run.rows;
    args.heads = model.config.heads;
    args.k = run.pool->k(0);
    args.max_length = run.pool->capacity();
    most = std::max(most, CudaAttentionWorkspaceBytes(args));
  }
  return static_cast<size_t>(most);
}

void CudaEmbedRows(const CudaOps::Pass& pass) {
  const CudaPhase phase(pass, Phase::kOther);
  const ModelConfig& config = pass.model.config;
  CudaEmbedding({pass.model.embedding.get(), config.vocab, pass.rows.ids(), pass.rows.rows,
                 config.hidden, pass.work.stream.get()},
                pass.stream);
}

void CudaComputeLogits(const CudaOps::Pass& pass, const void* stream_rows, int64_t rows,
                       float* logits) {
  const CudaPhase phase(pass, Phase::kHead);
  const CudaModel& model = pass.model;
  CudaWorkspace& work = pass.work;
  const bool is_quantized = model.head_act_bits <= 8;
  CudaKronQuantizeArgs norm;
  norm.dtype = model.dtype;
  norm.input = CudaSiteInput::kRmsNorm;
  norm.x = stream_rows;
  norm.x_stride = model.config.hidden;
  norm.norm_weight = model.final_norm.get();
  norm.eps = static_cast<float>(model.config.rms_eps);
  norm.width = model.config.hidden;
  norm.tokens = rows;
  norm.bits = is_quantized ? model.head_act_bits : 16;
  norm.y = work.site.get();
  norm.codes = work.codes.get();
  norm.code_stride = work.code_stride;
  norm.scales = work.scales.get();
  CudaKronQuantize(norm, pass.stream);
  if (model.has_integer_head()) {
    CudaGemmInt8({work.codes.get(), work.code_stride, work.scales.get(), rows,
                  model.head_codes.get(), model.head_stride(), model.head_scale.get(),
                  model.config.vocab, model.config.hidden, logits, model.config.vocab},
                 pass.stream);
    return;
  }
  if (is_quantized) {
    CudaDequantize({work.codes.get(), work.code_stride, work.scales.get(), rows,
                    model.config.hidden, model.dtype, work.site.get()},
                   pass.stream);
  }
  CudaGemmFloatArgs product;
  product.dtype = model.dtype;
  product.x = work.site.get();
  product.x_stride = model.config.hidden;
  product.tokens = rows;
  product.weight = model.head();
  product.rows = model.config.vocab;
  product.cols = model.config.hidden;
  product.y_dtype = DType::kF32;
  product.y = logits;
  product.y_stride = model.config.vocab;
  pass.gemm(product, pass.stream);
}

}  // namespace flatquant
