#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "flatquant/checkpoint/pth_value.h"

namespace flatquant {

// What a pickle asks of torch._utils._rebuild_tensor_v2. offset and strides
// count elements.
struct TensorRequest {
  const PthStorage& storage;
  uint64_t offset;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // as many as shape
};

using TensorMaker = std::function<Tensor(const TensorRequest&)>;

inline constexpr uint64_t kMaxPickleBytes = 32 << 20;
inline constexpr size_t kMaxPthValues = 2'000'000;
inline constexpr size_t kMaxPthDimensions = 32;

// Runs the pickle program (protocol 2 to 5, https://peps.python.org/pep-3154/ and
// Python's pickletools) within the allow-list of pth_reader.h. Memory and time
// are proportional to the program's length. `where` names the file in errors.
PthTree RunPickle(std::span<const std::byte> program, const std::string& where,
                  const TensorMaker& make_tensor);

// Checks the promises of a finished tree: nothing internal left, no cycle, no key
// twice, bounded depth, and, shared values counted wherever they appear, bounded
// size. Part of RunPickle; errors as in pth_reader.h.
void ValidatePthTree(const PthTree& tree, const std::string& where);

}  // namespace flatquant
