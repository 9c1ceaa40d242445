#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant {

// Bytes that all DeviceBuffers of the process hold.
inline std::atomic<uint64_t> device_buffer_bytes = 0;

// Owned device memory, for tests, benchmarks and whoever holds weights.
template <typename T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t size) : size_(size) {
    FLATQUANT_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<size_t>(1, bytes())));
    device_buffer_bytes += bytes();
  }
  explicit DeviceBuffer(const std::vector<T>& values) : DeviceBuffer(values.size()) {
    Upload(values);
  }
  ~DeviceBuffer() {
    if (data_ == nullptr) return;
    cudaFree(data_);
    device_buffer_bytes -= bytes();
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* get() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

  // Complete when it returns, for every stream: a copy from pageable memory alone may still be on
  // its way from where the driver has staged it, and only the default stream would wait for it.
  void Upload(const std::vector<T>& values) {
    FLATQUANT_CUDA(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
    FLATQUANT_CUDA(cudaStreamSynchronize(nullptr));
  }
  // Waits for the device.
  std::vector<T> Download() const {
    std::vector<T> values(size_);
    FLATQUANT_CUDA(cudaDeviceSynchronize());
    FLATQUANT_CUDA(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }
  void Fill(int byte) { FLATQUANT_CUDA(cudaMemset(data_, byte, bytes())); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Owned host memory that the device reads and writes itself, at the same address, and that
// asynchronous copies need not stage.
template <typename T>
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t size) : size_(size) {
    FLATQUANT_CUDA(
        cudaMallocHost(reinterpret_cast<void**>(&data_), std::max<size_t>(1, size * sizeof(T))));
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* get() const { return data_; }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace flatquant
