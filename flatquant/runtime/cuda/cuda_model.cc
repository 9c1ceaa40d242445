#include "flatquant/runtime/cuda/cuda_model.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/base/half.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

// The kernels' own limits (their contracts).
constexpr int kMostIntegerWeightBits = 4;
constexpr int kMostCacheBits = 4;

[[noreturn]] void Unsupported(const std::string& where, const std::string& what) {
  throw Error("cuda.unsupported", where, what, "use --device cpu");
}

void CheckSupported(const PackedModel& model) {
  const ModelConfig& config = model.config;
  if (config.head_dim != 64 && config.head_dim != 128) {
    Unsupported("model", "the GPU's attention knows heads of 64 or 128 elements, these have " +
                             std::to_string(config.head_dim));
  }
  if (config.hidden % 8 != 0) Unsupported("model", "the width is no multiple of 8");
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    const PackedBlock& block = model.blocks[i];
    const std::string where = "block " + std::to_string(i);
    for (int bits : {block.cache.k_bits, block.cache.v_bits}) {
      if (bits <= kMostCacheBits || bits == 16) continue;
      Unsupported(where, "the GPU's KV cache has 2 to 4 bits or 16, not " + std::to_string(bits));
    }
    for (const PackedSite& site : block.sites) {
      if (site.is_flattened()) Unsupported(where, "flattened sites do not run on the GPU");
    }
  }
}

uint16_t To16(DType dtype, float x) {
  return dtype == DType::kF16 ? FloatToF16(x) : FloatToBF16(x);
}

DeviceBuffer<uint16_t> Upload16(DType dtype, const std::vector<float>& values) {
  std::vector<uint16_t> converted(values.size());
  std::transform(values.begin(), values.end(), converted.begin(),
                 [&](float x) { return To16(dtype, x); });
  return DeviceBuffer<uint16_t>(converted);
}

// How weights reach the GPU: as which type, converted by which threads.
struct Loading {
  DType dtype;
  ThreadPool& pool;
};

// W of a linear or a table as 16-bit floats [rows, cols].
void FillRows(const PackedLinear& linear, int64_t rows, int64_t cols, const Loading& loading,
              uint16_t* out) {
  if (linear.bits == 16 && linear.weight.dtype == loading.dtype) {
    std::memcpy(out, linear.weight.data, linear.weight.bytes());
    return;
  }
  loading.pool.ParallelFor(static_cast<size_t>(rows), 16, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(cols));
    for (size_t r = begin; r < end; ++r) {
      DequantizeRow(linear, static_cast<int64_t>(r), cols, row.data());
      std::transform(row.begin(), row.end(), out + r * row.size(),
                     [&](float x) { return To16(loading.dtype, x); });
    }
  });
}

// The linears of a site that `names` says as one product.
CudaLinears LoadLinears(const PackedBlock& block, const ModelConfig& config,
                        std::span<const Linear> names, int act_bits, const Loading& loading) {
  CudaLinears loaded;
  loaded.cols = ShapeOf(config, names[0]).cols;
  // CudaGemmW4A16 reads eight activations at a time. No kernel knows groups' scales.
  loaded.is_packed = (act_bits <= 8 || loaded.cols % 8 == 0) &&
                     std::all_of(names.begin(), names.end(), [&](Linear name) {
                       const PackedLinear& linear = block.linear(name);
                       return linear.bits <= kMostIntegerWeightBits && !linear.is_grouped();
                     });
  std::vector<uint8_t> codes;
  std::vector<uint16_t> floats;
  std::vector<float> scale, bias;
  bool has_bias = false;
  for (Linear name : names) {
    const PackedLinear& linear = block.linear(name);
    const int64_t rows = ShapeOf(config, name).rows;
    loaded.rows = RoundUpTo(loaded.rows, 8);
    const int64_t row_bytes = PackedRowBytes(4, loaded.cols);
    if (loaded.is_packed) {
      codes.resize(static_cast<size_t>(loaded.rows * row_bytes));
      const auto* from = reinterpret_cast<const uint8_t*>(linear.weight.data);
      codes.insert(codes.end(), from, from + rows * row_bytes);
      scale.resize(static_cast<size_t>(loaded.rows));
      const std::vector<float> scales = linear.scale.ToFloat();
      scale.insert(scale.end(), scales.begin(), scales.end());
    } else {
      floats.resize(static_cast<size_t>((loaded.rows + rows) * loaded.cols));
      FillRows(linear, rows, loaded.cols, loading, floats.data() + loaded.rows * loaded.cols);
    }
    bias.resize(static_cast<size_t>(loaded.rows));
    if (linear.bias.defined()) {
      has_bias = true;
      const std::vector<float> values = linear.bias.ToFloat();
      bias.insert(bias.end(), values.begin(), values.end());
    }
    loaded.rows += rows;
    bias.resize(static_cast<size_t>(loaded.rows));
    MappedFile::ReleasePages(linear.weight.data, linear.weight.bytes());
  }
  if (loaded.is_packed) {
    const size_t padded = static_cast<size_t>(CudaGemmIntPaddedRows(loaded.rows));
    scale.resize(padded);
    loaded.scale = DeviceBuffer<float>(scale);
    bias.resize(padded);
    if (has_bias) loaded.bias = DeviceBuffer<float>(bias);
    const DeviceBuffer<uint8_t> canonical(codes);
    loaded.packed = DeviceBuffer<uint8_t>(
        static_cast<size_t>(CudaGemmIntPackedBytes(loaded.rows, loaded.cols)));
    CudaPackGemmInt(canonical.get(), loaded.rows, loaded.cols, loaded.packed.get(), nullptr);
    FLATQUANT_CUDA(cudaStreamSynchronize(nullptr));  // `canonical` goes now
  } else {
    loaded.floats = DeviceBuffer<uint16_t>(floats);
    if (has_bias) loaded.bias_16 = Upload16(loading.dtype, bias);
  }
  return loaded;
}

CudaSite LoadSite(const PackedBlock& block, const ModelConfig& config, Site which,
                  const Loading& loading) {
  const PackedSite& site = block.site(which);
  CudaSite loaded;
  loaded.width = SiteWidth(config, which);
  loaded.act_bits = site.act_bits;
  for (Clip clip : site.clips) loaded.clips.push_back({clip.max, clip.min});
  if (site.has_transform()) {
    int64_t left = site.left.defined() ? site.left.shape[0] : 0;
    int64_t right = site.right.defined() ? site.right.shape[0] : 0;
    if (left == 0) left = loaded.width / right;
    if (right == 0) right = loaded.width / left;
    const auto upload = [](const Tensor& matrix) {
      return matrix.defined() ? DeviceBuffer<float>(matrix.ToFloat()) : DeviceBuffer<float>();
    };
    const DeviceBuffer<float> left_matrix = upload(site.left);
    const DeviceBuffer<float> right_matrix = upload(site.right);
    loaded.matrices =
        DeviceBuffer<uint16_t>(static_cast<size_t>(CudaKronPackedBytes(left, right) / 2));
    CudaPackKron(left, left_matrix.get(), right, right_matrix.get(), loading.dtype,
                 loaded.matrices.get(), nullptr);
    FLATQUANT_CUDA(cudaStreamSynchronize(nullptr));
    loaded.transform = {left, right, loaded.matrices.get()};
  }
  const std::span<const Linear> names = LinearsOf(which);
  const size_t per_product = site.clips.size() > 1 ? 1 : names.size();
  for (size_t i = 0; i < names.size(); i += per_product) {
    CudaLinears linears =
        LoadLinears(block, config, names.subspan(i, per_product), site.act_bits, loading);
    linears.clip = site.clips.size() > 1 ? i : 0;
    linears.first_row = loaded.output;
    loaded.output = RoundUpTo(loaded.output + linears.rows, 8);
    loaded.linears.push_back(std::move(linears));
  }
  return loaded;
}

DeviceBuffer<uint16_t> LoadHeadTransform(const Tensor& matrix, int64_t head_dim, DType dtype) {
  if (!matrix.defined()) return {};
  const DeviceBuffer<float> floats(matrix.ToFloat());
  DeviceBuffer<uint16_t> packed(static_cast<size_t>(head_dim * head_dim));
  CudaPackHeadTransform(floats.get(), head_dim, dtype, packed.get(), nullptr);
  FLATQUANT_CUDA(cudaStreamSynchronize(nullptr));
  return packed;
}

CudaBlock LoadBlock(const PackedBlock& block, const ModelConfig& config, const Loading& loading) {
  const DType dtype = loading.dtype;
  CudaBlock loaded;
  loaded.input_norm = Upload16(dtype, block.input_norm.ToFloat());
  loaded.post_attention_norm = Upload16(dtype, block.post_attention_norm.ToFloat());
  for (Site site : kSites) {
    loaded.sites[static_cast<size_t>(site)] = LoadSite(block, config, site, loading);
  }
  if (config.qk_norm) {
    loaded.q_norm = Upload16(dtype, block.q_norm.ToFloat());
    loaded.k_norm = Upload16(dtype, block.k_norm.ToFloat());
  }
  loaded.k_bits = block.cache.k_bits;
  loaded.v_bits = block.cache.v_bits;
  loaded.k_clip = {block.cache.k_clip.max, block.cache.k_clip.min};
  loaded.v_clip = {block.cache.v_clip.max, block.cache.v_clip.min};
  loaded.k_transform = LoadHeadTransform(block.cache.k_transform, config.head_dim, dtype);
  loaded.q_transform = LoadHeadTransform(block.cache.q_transform, config.head_dim, dtype);
  return loaded;
}

DeviceBuffer<uint16_t> LoadTable(const PackedLinear& table, const ModelConfig& config,
                                 const Loading& loading) {
  std::vector<uint16_t> rows(static_cast<size_t>(config.vocab * config.hidden));
  FillRows(table, config.vocab, config.hidden, loading, rows.data());
  return DeviceBuffer<uint16_t>(rows);
}

// Codes of any width as bytes.
void LoadHeadCodes(const PackedLinear& head, CudaModel* model) {
  const ModelConfig& config = model->config;
  const size_t stride = static_cast<size_t>(model->head_stride());
  const auto row_bytes = static_cast<size_t>(PackedRowBytes(head.bits, config.hidden));
  std::vector<int8_t> codes(static_cast<size_t>(config.vocab) * stride);
  for (size_t r = 0; r < static_cast<size_t>(config.vocab); ++r) {
    UnpackRow(head.bits, head.weight.data + r * row_bytes, config.hidden,
              codes.data() + r * stride);
  }
  model->head_codes = DeviceBuffer<int8_t>(codes);
  model->head_scale = DeviceBuffer<float>(head.scale.ToFloat());
}

}  // namespace

CudaGemmIntWeights CudaLinears::weights() const {
  return {rows, cols, packed.get(), scale.get(), bias.size() > 0 ? bias.get() : nullptr};
}

uint64_t CudaLinears::bytes() const {
  return packed.bytes() + floats.bytes() + scale.bytes() + bias.bytes() + bias_16.bytes();
}

uint64_t CudaSite::bytes() const {
  uint64_t total = matrices.bytes();
  for (const CudaLinears& part : linears) total += part.bytes();
  return total;
}

uint64_t CudaBlock::bytes() const {
  uint64_t total = input_norm.bytes() + post_attention_norm.bytes() + q_norm.bytes() +
                   k_norm.bytes() + k_transform.bytes() + q_transform.bytes();
  for (const CudaSite& site : sites) total += site.bytes();
  return total;
}

CudaModel LoadCudaModel(PackedModel model, DType dtype, ThreadPool& pool) {
  CheckSupported(model);
  const Loading loading = {dtype, pool};
  CudaModel loaded;
  loaded.config = model.config;
  loaded.dtype = dtype;
  for (PackedBlock& block : model.blocks) {
    loaded.blocks.push_back(LoadBlock(block, loaded.config, loading));
    block = {};  // in-memory weights are not needed twice
  }
  loaded.final_norm = Upload16(dtype, model.final_norm.ToFloat());
  loaded.head_act_bits = model.head.act_bits;
  loaded.embedding = LoadTable(EmbeddingTable(model), loaded.config, loading);
  const PackedLinear head = HeadLinear(model);
  if (head.bits <= 8 && model.head.act_bits <= 8) {
    LoadHeadCodes(head, &loaded);
  } else if (!loaded.config.tied_embeddings) {
    loaded.lm_head = LoadTable(head, loaded.config, loading);
  }
  loaded.rope_frequencies = RopeFrequencies(loaded.config.rope, loaded.config.head_dim);
  // Kernels may read weights before their predecessor's end (cuda/dependent_launch.cuh).
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  return loaded;
}

}  // namespace flatquant
