#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>

namespace flatquant::compress {

// Where the activations of calibration lie: in memory, or in files that the kernel
// takes out of memory when it needs the room.
class StreamMemory {
 public:
  StreamMemory() = default;  // memory, of the device that computes

  // bytes: what all tensors take together; limit: 0 for none; folder: of the files, if
  // there must be some.
  StreamMemory(uint64_t bytes, uint64_t limit, std::filesystem::path folder);

  bool is_in_files() const { return !folder_.empty(); }

  // Float32, not filled in, on `device`, or on the CPU in a file. A file has no name:
  // its space comes back with the tensor, or the process, however that ends. Its space
  // is set aside at once. Errors: file.create, file.write (disk full).
  at::Tensor Allocate(at::IntArrayRef sizes, at::Device device) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace flatquant::compress
