#include "flatquant/checkpoint/pth_reader.h"

#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/pickle_machine.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/checkpoint/zip_reader.h"

namespace flatquant {
namespace {

constexpr std::string_view kAgain = "copy the file again";
constexpr std::string_view kPickle = "data.pkl";
constexpr uint64_t kMaxNamesBytes = 256 << 20;

// The entries of one file as torch.save lays them out: everything lies in one
// folder, with data.pkl, an optional byteorder, and data/KEY per storage.
class Archive {
 public:
  Archive(const std::filesystem::path& path, const PthLimits& limits)
      : where_(path.string()),
        budget_(limits.memory_bytes),
        file_(std::make_shared<const MappedFile>(MappedFile::Open(path))),
        zip_(file_->bytes(), where_) {
    FindFolder();
    CheckByteOrder();
  }

  PthTree Load() {
    const Content pickle = Read(folder_ + std::string(kPickle));
    return RunPickle(pickle.bytes, where_,
                     [this](const TensorRequest& request) { return MakeTensor(request); });
  }

 private:
  // Bytes and what keeps them in memory.
  struct Content {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;
  };

  void FindFolder() {
    bool found = false;
    for (const auto& [name, entry] : zip_.entries()) {
      const size_t slash = name.find('/');
      if (slash == std::string::npos || name.substr(slash + 1) != kPickle) continue;
      if (found) {
        throw Error("pth.bad_zip", where_, "the archive holds two pickles", kAgain);
      }
      found = true;
      folder_ = name.substr(0, slash + 1);
    }
    if (!found) {
      throw Error("pth.missing_entry", where_, "the archive has no data.pkl",
                  "use a file written by torch.save");
    }
  }

  void CheckByteOrder() {
    const std::string name = folder_ + "byteorder";
    if (!zip_.entries().contains(name)) return;  // older files, little-endian in practice
    const Content content = Read(name);
    if (std::string_view(reinterpret_cast<const char*>(content.bytes.data()),
                         content.bytes.size()) != "little") {
      throw Error("pth.byte_order", where_, "was not written on a little-endian machine",
                  "load it and save it again on one");
    }
  }

  void Spend(uint64_t bytes, const std::string& what) {
    if (bytes > budget_) {
      throw Error("pth.too_large", where_,
                  what + " would take " + std::to_string(bytes) + " bytes of memory, " +
                      std::to_string(budget_) + " of those allowed are left",
                  "save the tensors contiguous and uncompressed");
    }
    budget_ -= bytes;
  }

  Content Read(const std::string& name) {
    const auto found = zip_.entries().find(name);
    if (found == zip_.entries().end()) {
      throw Error("pth.missing_entry", where_, "the archive has no entry " + Quoted(name), kAgain);
    }
    const ZipEntry& entry = found->second;
    if (!entry.deflated) return {zip_.Read(name, entry, nullptr), file_};
    Spend(entry.bytes, "entry " + Quoted(name));
    auto memory = std::make_shared<std::vector<std::byte>>();
    const auto bytes = zip_.Read(name, entry, memory.get());
    return {bytes, std::move(memory)};
  }

  // The bytes of a storage, read and verified once.
  const Content& Storage(const PthStorage& storage) {
    auto found = storages_.find(storage.key);
    if (found == storages_.end()) {
      found = storages_.emplace(storage.key, Read(folder_ + "data/" + storage.key)).first;
    }
    const auto expected = CheckedMul(storage.elements, DTypeSize(storage.dtype));
    if (!expected || *expected != found->second.bytes.size()) {
      throw Error("pth.bad_storage", where_,
                  "storage " + Quoted(storage.key) + " has " +
                      std::to_string(found->second.bytes.size()) + " bytes, not " +
                      std::to_string(storage.elements) + " elements of " +
                      std::string(DTypeName(storage.dtype)),
                  kAgain);
    }
    return found->second;
  }

  Tensor MakeTensor(const TensorRequest& request) {
    const Content& storage = Storage(request.storage);
    const auto bad = [&] {
      return Error("pth.bad_tensor", where_,
                   "a tensor of storage " + Quoted(request.storage.key) +
                       " has a size, stride or offset that leaves the storage",
                   kAgain);
    };
    const auto elements = CheckedElements(request.shape);
    const uint64_t size = DTypeSize(request.storage.dtype);
    if (!elements || !CheckedMul(*elements, size)) throw bad();
    TensorView view{request.storage.dtype, request.shape, nullptr};
    if (*elements == 0) {
      static constexpr std::byte kNothing{};
      view.data = &kNothing;  // defined, though never read
      return Tensor::Share(std::move(view), nullptr);
    }

    uint64_t last = request.offset;  // the last element that the tensor reaches
    bool contiguous = true;
    uint64_t dense_stride = 1;
    for (size_t i = request.shape.size(); i-- > 0;) {
      const auto steps = static_cast<uint64_t>(request.shape[i]) - 1;
      const auto stride = static_cast<uint64_t>(request.strides[i]);
      const auto reach = CheckedMul(steps, stride);
      const auto sum = reach ? CheckedAdd(last, *reach) : std::nullopt;
      if (!sum) throw bad();
      last = *sum;
      contiguous = contiguous && (steps == 0 || stride == dense_stride);
      dense_stride *= steps + 1;
    }
    if (last >= request.storage.elements) throw bad();
    const std::byte* first = storage.bytes.data() + request.offset * size;
    if (contiguous) {
      view.data = first;
      return Tensor::Share(std::move(view), storage.owner);
    }
    Spend(*elements * size, "a tensor of storage " + Quoted(request.storage.key));
    auto memory = std::make_shared<std::vector<std::byte>>(*elements * size);
    Gather(request, first, size, memory->data());
    view.data = memory->data();
    return Tensor::Share(std::move(view), std::move(memory));
  }

  // Copies a strided tensor's elements, of `size` bytes each, to dense row-major
  // order.
  static void Gather(const TensorRequest& request, const std::byte* from, uint64_t size,
                     std::byte* to) {
    const size_t rank = request.shape.size();
    std::vector<int64_t> index(rank, 0);
    for (;;) {
      std::memcpy(to, from, size);
      to += size;
      size_t axis = rank;
      for (; axis > 0; --axis) {
        const size_t i = axis - 1;
        const uint64_t step = static_cast<uint64_t>(request.strides[i]) * size;
        if (++index[i] < request.shape[i]) {
          from += step;
          break;
        }
        from -= step * static_cast<uint64_t>(request.shape[i] - 1);
        index[i] = 0;
      }
      if (axis == 0) return;
    }
  }

  std::string where_;
  uint64_t budget_;  // bytes that may still be allocated
  std::shared_ptr<const MappedFile> file_;
  ZipReader zip_;
  std::string folder_;  // "flat_matrices/"
  std::unordered_map<std::string, Content> storages_;
};

// Walks a validated tree, whose depth is bounded.
class Flattener {
 public:
  explicit Flattener(const std::string& where) : where_(where) {}

  void Add(const PthValue& value) {
    if (const auto* tensor = value.As<Tensor>()) {
      names_bytes_ += name_.size();
      if (names_bytes_ > kMaxNamesBytes) {
        throw Error("pth.too_large", where_, "its tensors' names take too much memory",
                    "use a file that holds only tensors");
      }
      if (!tensors_.emplace(name_, *tensor).second) {
        throw Error("pth.duplicate_name", where_,
                    "two tensors are named " + Quoted(name_) + " once their keys are joined",
                    "rename one of them");
      }
    } else if (const auto* dict = value.As<PthValue::Dict>()) {
      for (const auto& [key, item] : dict->items) {
        const auto* number = key->As<int64_t>();
        AddNamed(number != nullptr ? std::to_string(*number) : *key->As<std::string>(), *item);
      }
    } else if (const auto* list = value.As<PthValue::List>()) {
      AddItems(list->items);
    } else if (const auto* tuple = value.As<PthValue::Tuple>()) {
      AddItems(tuple->items);
    }
  }

  std::map<std::string, Tensor, std::less<>> Take() { return std::move(tensors_); }

 private:
  void AddItems(const std::vector<const PthValue*>& items) {
    for (size_t i = 0; i < items.size(); ++i) AddNamed(std::to_string(i), *items[i]);
  }

  void AddNamed(const std::string& part, const PthValue& value) {
    const size_t length = name_.size();
    if (length > 0) name_ += '.';
    name_ += part;
    Add(value);
    name_.resize(length);
  }

  const std::string& where_;
  std::string name_;
  uint64_t names_bytes_ = 0;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace

PthFile PthFile::Open(const std::filesystem::path& path, const PthLimits& limits) {
  PthFile file;
  file.where_ = path.string();
  file.tree_ = Archive(path, limits).Load();
  return file;
}

std::map<std::string, Tensor, std::less<>> PthFile::Tensors() const {
  Flattener flattener(where_);
  flattener.Add(root());
  return flattener.Take();
}

}  // namespace flatquant
