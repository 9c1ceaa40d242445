#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/quantize_kv/cuda_kv_coder.cuh"

// Eight neighbouring lanes share a token's vector of one head. What they do with it, but for the
// product with the transform.
namespace flatquant::cuda {

constexpr int kVectorLanes = 8;

// A lane's part: x[half][i] is element half * kDim / 2 + kEach * (lane % 8) + i. Rotary embedding
// turns x[0][i] and x[1][i] as a pair.
template <int kDim>
struct VectorPart {
  static constexpr int kEach = kDim / 2 / kVectorLanes;
  static constexpr int kHalf = kDim / 2;
  // kEach elements of 16 bits, moved by one instruction.
  struct alignas(2 * kEach) Words {
    uint32_t word[kEach / 2];
  };
  struct Bits {
    Words half[2];
  };

  alignas(16) float x[2][kEach];

  // The lane's first element of that half.
  static __device__ int At(int half) { return half * kHalf + threadIdx.x % kVectorLanes * kEach; }

  template <typename Combine>
  static __device__ float AcrossLanes(float value, const Combine& combine) {
#pragma unroll
    for (int step = 1; step < kVectorLanes; step *= 2) {
      value = combine(value, __shfl_xor_sync(~0u, value, step));
    }
    return value;
  }

  // In memory a vector of T, 16-byte aligned.
  template <typename T>
  static __device__ Bits LoadBits(const T* vector) {
    Bits bits;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bits.half[half] = *reinterpret_cast<const Words*>(vector + At(half));
    }
    return bits;
  }

  template <typename T>
  static __device__ VectorPart FromBits(const Bits& bits) {
    VectorPart part;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; i += 2) {
        const float2 pair = Element<T>::ToFloat2(bits.half[half].word[i / 2]);
        part.x[half][i] = pair.x;
        part.x[half][i + 1] = pair.y;
      }
    }
    return part;
  }

  static __device__ VectorPart FromFloats(const float* vector) {
    VectorPart part;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; i += 4) {
        reinterpret_cast<float4&>(part.x[half][i]) =
            *reinterpret_cast<const float4*>(vector + At(half) + i);
      }
    }
    return part;
  }

  // Rounded to T.
  template <typename T>
  __device__ Bits ToBits() const {
    Bits bits;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; i += 2) {
        bits.half[half].word[i / 2] = Element<T>::Pack(x[half][i], x[half][i + 1]);
      }
    }
    return bits;
  }

  template <typename T>
  __device__ void Store(T* vector) const {
    const Bits bits = ToBits<T>();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<Words*>(vector + At(half)) = bits.half[half];
    }
  }

  template <typename T>
  __device__ void Norm(const void* weight, float eps) {
    float sum = 0;
#pragma unroll
    for (const auto& half : x) {
#pragma unroll
      for (const float element : half) sum += element * element;
    }
    sum = AcrossLanes(sum, [](float a, float b) { return a + b; });
    const float factor = rsqrtf(sum / kDim + eps);
    const VectorPart w = FromBits<T>(LoadBits(static_cast<const T*>(weight)));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) x[half][i] *= factor * w.x[half][i];
    }
  }

  __device__ void Rotate(const float (&cos)[kEach], const float (&sin)[kEach]) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float a = x[0][i];
      const float b = x[1][i];
      x[0][i] = a * cos[i] - b * sin[i];
      x[1][i] = b * cos[i] + a * sin[i];
    }
  }

  // To vector `vector` of a packed plane.
  __device__ void Quantize(const CudaKvPlane& plane, KronClip clip, int64_t vector,
                           bool stores) const {
    float least = 0;
    float most = 0;
#pragma unroll
    for (const auto& half : x) {
#pragma unroll
      for (const float element : half) {
        least = fminf(least, element);
        most = fmaxf(most, element);
      }
    }
    const KvCoder code(AcrossLanes(least, [](float a, float b) { return fminf(a, b); }),
                       AcrossLanes(most, [](float a, float b) { return fmaxf(a, b); }), clip,
                       plane.bits);
    if (!stores) return;
    uint8_t* to = plane.data + vector * kHalf;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t codes = 0;
#pragma unroll
      for (int i = 0; i < kEach; ++i) codes |= code(x[half][i]) << (4 * i);
      if constexpr (kEach == 8) {
        *reinterpret_cast<uint32_t*>(to + At(half) / 2) = codes;
      } else {
        *reinterpret_cast<uint16_t*>(to + At(half) / 2) = static_cast<uint16_t>(codes);
      }
    }
    if (threadIdx.x % kVectorLanes == 0) code.StoreScale(plane, vector);
  }
};

}  // namespace flatquant::cuda
