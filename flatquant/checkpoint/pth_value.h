#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "flatquant/base/tensor.h"

namespace flatquant {

// A storage that a pickle names: elements of one type in an archive entry.
struct PthStorage {
  DType dtype;
  std::string key;    // the entry is "<archive>/data/<key>"
  uint64_t elements;  // as the pickle claims
};

// The functions and classes that a pickle may name; nothing else exists for it,
// and these are answered by code of ours.
enum class PthGlobal : uint8_t {
  kOrderedDict,
  kRebuildTensor,
  kRebuildParameter,
  kStorageType,
};

// A value of a .pth file. Containers refer to values of the same PthTree, which
// owns them all; a value may be referred to from several places.
struct PthValue {
  struct None {};
  struct List {
    std::vector<const PthValue*> items;
  };
  struct Tuple {
    std::vector<const PthValue*> items;
  };
  // In the file's order. Keys are strings or integers, each once.
  struct Dict {
    std::vector<std::pair<const PthValue*, const PthValue*>> items;
  };
  // Exist only while the pickle runs; a finished tree has none.
  struct Global {
    PthGlobal which;
    DType dtype;  // of a storage type
  };
  using Storage = PthStorage;

  std::variant<None, bool, int64_t, double, std::string, List, Tuple, Dict, Tensor, Global, Storage>
      data;

  // The value as a T, or nullptr if it is something else.
  template <typename T>
  const T* As() const {
    return std::get_if<T>(&data);
  }
};

// A tree without cycles, at most kMaxPthDepth containers deep. Flat ownership:
// destroying it needs no recursion.
struct PthTree {
  std::deque<PthValue> values;
  const PthValue* root = nullptr;
};

inline constexpr int kMaxPthDepth = 64;

}  // namespace flatquant
