#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace flatquant {

// `bytes` (> 0) of zeroed memory on a cache-line boundary. Of 2 MB and more pages are
// taken, and zeroed, as they are first written to, and are huge ones where the system
// grants them, since whoever streams weights through small pages waits for address
// translations. Throws std::bad_alloc.
void* AllocateZeroed(size_t bytes);
// Gives it back; bytes: as asked for.
void FreeZeroed(void* memory, size_t bytes);

// Owns n elements of a trivial type, 64-byte aligned (a cache line and an
// AVX-512 vector) and zeroed. Movable, not copyable.
template <typename T>
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n) : size_(n) {
    if (n == 0) return;
    const size_t bytes = (n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    data_ = {static_cast<T*>(AllocateZeroed(bytes)), Free{bytes}};
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_.get()[i]; }
  const T& operator[](size_t i) const { return data_.get()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }

 private:
  struct Free {
    size_t bytes = 0;
    void operator()(T* p) const { FreeZeroed(p, bytes); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

}  // namespace flatquant
