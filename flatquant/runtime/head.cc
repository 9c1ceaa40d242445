#include "flatquant/runtime/head.h"

#include "flatquant/kernels/embedding/embedding.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {

void EmbedTokens(const LoadedModel& model, std::span<const int32_t> ids, float* stream,
                 ThreadPool& pool) {
  const PackedLinear& table = model.embedding;
  const int64_t hidden = model.config.hidden;
  if (table.bits == 16) {
    EmbeddingArgs args;
    args.table = table.weight.data;
    args.dtype = table.weight.dtype;
    args.vocab = model.config.vocab;
    args.ids = ids.data();
    args.rows = static_cast<int64_t>(ids.size());
    args.cols = hidden;
    args.y = stream;
    Embedding(args, pool);
    return;
  }
  constexpr size_t kRows = 8;  // some microseconds of work
  pool.ParallelFor(ids.size(), kRows, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      DequantizeRow(table, ids[i], hidden, stream + static_cast<int64_t>(i) * hidden);
    }
  });
}

void ComputeLogits(const LoadedModel& model, const float* stream, int64_t tokens, float* logits,
                   SiteBuffers& buffers, ThreadPool& pool) {
  const KronInputStage norm = {.norm_weight = model.final_norm.data(),
                               .norm_eps = model.config.rms_eps};
  const SiteOutput input = ApplySite(model.head_site, stream, norm, tokens, buffers, pool);
  ApplyLinears({{&model.lm_head, logits}}, input, pool);
}

}  // namespace flatquant
