#include "flatquant/kernels/kron_quantize/kron_quantize.h"

#include <algorithm>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/kernels/kron_quantize/ask_ahead.h"
#include "flatquant/kernels/kron_quantize/tile_operands.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct KronTag {};

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Tokens of a task. 4096 elements are some microseconds of work, which outweighs
// the hand-over, and keep a task's memory (five times 16 KB) in L2; but 16 rows for
// each matrix product, or it would wait for its matrix.
int64_t TokenSlice(const KronTransform& transform) {
  constexpr int64_t kElements = 4096;
  constexpr int64_t kRows = 16;
  return std::max({int64_t{1}, kElements / transform.width(),
                   transform.is_identity() ? 1 : kRows / transform.left_size});
}

// Empty for a matrix that changes nothing.
AlignedBuffer<float> CopySquare(const std::byte* from, int64_t size, int64_t stride) {
  if (from == nullptr) return {};
  AlignedBuffer<float> to(static_cast<size_t>(size * stride));
  const size_t row_bytes = static_cast<size_t>(size) * sizeof(float);
  bool is_identity = true;
  for (int64_t i = 0; i < size; ++i) {
    float* row = to.data() + i * stride;
    std::memcpy(row, from + static_cast<size_t>(i) * row_bytes, row_bytes);
    for (int64_t j = 0; j < size; ++j) is_identity &= row[j] == (i == j ? 1.0f : 0.0f);
  }
  if (is_identity) return {};
  return to;
}

KronScratch MakeScratch(const KronTransform& transform, int64_t tokens) {
  KronScratch scratch;
  scratch.stride = RoundUp(transform.right_size, 16);
  const int64_t input = RoundUp(tokens * transform.width(), 16);
  if (transform.is_identity()) {
    scratch.input = ThreadScratch<KronTag, float>(static_cast<size_t>(input));
    return scratch;
  }
  const int64_t half = (tokens * transform.left_size + 15) * scratch.stride;
  const int64_t tiles = RoundUp(TileOperandElements(transform, tokens), 32) / 2;  // in floats
  // With both factors the result may lie where the input was.
  const bool is_shared = transform.left.size() > 0 && transform.right.size() > 0;
  const int64_t first = is_shared ? std::max(input, half) : input + half;
  float* memory = ThreadScratch<KronTag, float>(static_cast<size_t>(first + half + 2 * tiles));
  scratch.input = memory;
  scratch.y = is_shared ? memory : memory + input;
  scratch.half = memory + first;
  scratch.high = reinterpret_cast<uint16_t*>(scratch.half + half);
  scratch.low = reinterpret_cast<uint16_t*>(scratch.half + half + tiles);
  return scratch;
}

// Tokens [begin, end) of a KronQuantize call, before [end, next_end).
class Task {
 public:
  Task(const KronQuantizeArgs& args, int64_t begin, int64_t end, int64_t next_end)
      : args_(args),
        transform_(*args.transform),
        kernel_(*transform_.kernel),
        begin_(begin),
        tokens_(end - begin),
        width_(transform_.width()),
        ahead_{{Next(args.x, end, next_end), Next(args.input.up, end, next_end)}},
        scratch_(MakeScratch(transform_, tokens_)) {
    scratch_.ahead = &ahead_;
  }

  void Run() {
    const bool wants_floats = args_.bits == 16;
    float* result = wants_floats ? args_.y + begin_ * width_ : nullptr;
    if (transform_.is_identity()) {
      const float* x = Input(wants_floats ? result : scratch_.input);
      if (wants_floats) {
        if (x != result) std::memcpy(result, x, Bytes(tokens_ * width_));
      } else {
        Quantize(x, {.y = nullptr, .rows = 1, .cols = width_, .stride = width_});
      }
      return;
    }
    const float* x = Input(scratch_.input);
    if (wants_floats && WritesWholeTiles()) {
      kernel_.transform(transform_, x, tokens_, args_.bits, scratch_, result);
      return;
    }
    kernel_.transform(transform_, x, tokens_, args_.bits, scratch_, scratch_.y);
    if (wants_floats) {
      for (int64_t i = 0; i < tokens_ * transform_.left_size; ++i) {
        std::memcpy(result + i * transform_.right_size, scratch_.y + i * scratch_.stride,
                    Bytes(transform_.right_size));
      }
      return;
    }
    Quantize(scratch_.y, {.y = nullptr,
                          .rows = transform_.left_size,
                          .cols = transform_.right_size,
                          .stride = scratch_.stride});
  }

 private:
  KronAhead::Range Next(const float* input, int64_t begin, int64_t end) const {
    // The hardware sees a quantization alone coming.
    if (input == nullptr || transform_.is_identity()) return {};
    return {input + begin * width_, input + end * width_};
  }
  static size_t Bytes(int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); }

  // The transform's input: x itself, or what the input stage makes of it in `made`.
  const float* Input(float* made) {
    const float* x = args_.x + begin_ * width_;
    if (args_.input.norm_weight != nullptr) {
      kernel_.rms_norm->run(
          {x, args_.input.norm_weight, args_.input.norm_eps, tokens_, width_, made}, 0, tokens_);
      return made;
    }
    if (args_.input.up != nullptr) {
      Swiglu(x, args_.input.up + begin_ * width_, made);
      return made;
    }
    return x;
  }

  // In pieces, between which the next tokens' input is asked for.
  void Swiglu(const float* gate, const float* up, float* y) {
    constexpr int64_t kPiece = 512;
    const int64_t n = tokens_ * width_;
    ShareWithSwiglu(ahead_, (n + kPiece - 1) / kPiece);
    for (int64_t i = 0; i < n; i += kPiece) {
      AskAhead(ahead_);
      kernel_.swiglu->run({gate + i, up + i, 1, std::min(kPiece, n - i), y + i}, 0, 1);
    }
  }

  // Whether the result's rows are those that a kernel writes, without any beyond.
  bool WritesWholeTiles() const {
    const int64_t product_rows =
        transform_.left.size() > 0 ? transform_.left_size : tokens_ * transform_.left_size;
    return transform_.right_size % 16 == 0 && product_rows % 16 == 0;
  }

  void Quantize(const float* y, KronToken token) {
    ShareAhead(ahead_, LinesAhead(ahead_), tokens_ * token.rows * (1 + args_.clip_count));
    for (int64_t t = 0; t < tokens_; ++t) {
      token.y = y + t * token.rows * token.stride;
      kernel_.quantize(args_, begin_ + t, token, ahead_);
    }
  }

  const KronQuantizeArgs& args_;
  const KronTransform& transform_;
  const KronQuantizeKernel& kernel_;
  const int64_t begin_;
  const int64_t tokens_;
  const int64_t width_;
  KronAhead ahead_;
  KronScratch scratch_;
};

}  // namespace

KronTransform PackKronTransform(int64_t left_size, const std::byte* left, int64_t right_size,
                                const std::byte* right, const KronQuantizeKernel* kernel) {
  FLATQUANT_CHECK(left_size > 0 && right_size > 0);
  KronTransform transform;
  transform.left_size = left_size;
  transform.right_size = right_size;
  transform.left = CopySquare(left, left_size, left_size);
  transform.right_stride = RoundUp(right_size, 16);
  transform.right = CopySquare(right, right_size, transform.right_stride);
  transform.kernel = kernel != nullptr ? kernel : BestKernel<KronQuantizeKernel>().kernel;
  if (transform.kernel->reads_tiles) PackTileOperands(transform);
  return transform;
}

void KronQuantize(const KronQuantizeArgs& args, ThreadPool& pool) noexcept {
  FLATQUANT_CHECK(args.transform->kernel != nullptr);
  FLATQUANT_CHECK(args.bits == 16 || (args.code_stride >= args.transform->width() &&
                                      args.bits >= 2 && args.bits <= 8));
  FLATQUANT_CHECK(args.input.norm_weight == nullptr || args.input.up == nullptr);
  // Few tokens are shared by all threads: a token's result depends on no other. One
  // token stays on its thread, 0.5 to 20 microseconds in all.
  const int64_t share = (args.tokens + pool.threads() - 1) / pool.threads();
  const int64_t slice = std::clamp<int64_t>(share, 1, TokenSlice(*args.transform));
  // A thread takes several slices in turn, so that it knows what it will read next, but
  // leaves enough for threads to end together.
  constexpr int64_t kMostSlices = 8;
  constexpr int64_t kTurns = 4;
  const int64_t slices = std::clamp<int64_t>(share / (slice * kTurns), 1, kMostSlices);
  const KronQuantizeKernel& kernel = *args.transform->kernel;
  const bool takes_unit = kernel.take_unit != nullptr && !args.transform->is_identity();
  const auto run = [&](size_t first, size_t last) {
    const auto end = static_cast<int64_t>(last);
    if (takes_unit) kernel.take_unit();
    for (auto t = static_cast<int64_t>(first); t < end; t += slice) {
      const int64_t next = std::min(t + slice, end);
      Task(args, t, next, std::min(next + slice, end)).Run();
    }
    if (takes_unit) kernel.release_unit();
  };
  pool.ParallelFor(static_cast<size_t>(args.tokens), static_cast<size_t>(slice * slices), run);
}

}  // namespace flatquant
