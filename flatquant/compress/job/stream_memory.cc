#include "flatquant/compress/job/stream_memory.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include "flatquant/base/error.h"

namespace flatquant::compress {
namespace {

// A map of `bytes` bytes of a new file in `folder` that has no name any more.
void* MapUnnamedFile(const std::filesystem::path& folder, size_t bytes) {
  std::string name = (folder / "activations-XXXXXX").string();
  const int descriptor = ::mkstemp(name.data());
  if (descriptor < 0) {
    throw Error("file.create", folder.string(),
                std::string("cannot create a file for activations: ") + std::strerror(errno),
                "check the folder, or raise --calib-memory");
  }
  ::unlink(name.c_str());
  // A hole that cannot be filled later would end the process with SIGBUS.
  const int failure = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
  void* memory = MAP_FAILED;
  if (failure == 0) {
    memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  }
  const int reason = failure != 0 ? failure : errno;
  ::close(descriptor);
  if (memory != MAP_FAILED) return memory;
  throw Error("file.write", folder.string(),
              "cannot set aside " + std::to_string(bytes) +
                  " bytes for activations: " + std::strerror(reason),
              "free some space, or raise --calib-memory");
}

}  // namespace

StreamMemory::StreamMemory(uint64_t bytes, uint64_t limit, std::filesystem::path folder) {
  if (limit > 0 && bytes > limit) folder_ = std::move(folder);
}

at::Tensor StreamMemory::Allocate(at::IntArrayRef sizes, at::Device device) const {
  if (!is_in_files()) return at::empty(sizes, at::TensorOptions().dtype(at::kFloat).device(device));
  const int64_t elements =
      std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
  const size_t bytes = static_cast<size_t>(elements) * sizeof(float);
  void* const memory = MapUnnamedFile(folder_, bytes);
  return at::from_blob(
      memory, sizes, [bytes](void* map) { ::munmap(map, bytes); }, at::kFloat);
}

}  // namespace flatquant::compress
