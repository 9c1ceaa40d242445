#include "flatquant/checkpoint/safetensors_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/safetensors.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

using NamedTensor = std::pair<std::string, TensorView>;

void CheckNames(const std::vector<NamedTensor>& tensors, const std::string& where) {
  std::set<std::string_view> seen;
  for (const auto& [name, tensor] : tensors) {
    std::string_view problem;
    if (name.empty() || name == "__metadata__") problem = "is not allowed as a name";
    if (CheckJsonText(name)) problem = "is not UTF-8 text";
    if (!seen.insert(name).second) problem = "is given twice";
    if (!problem.empty()) {
      throw Error("safetensors.bad_name", where,
                  "tensor " + Quoted(name) + " " + std::string(problem), "rename the tensor");
    }
  }
}

}  // namespace

void WriteSafetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  const std::string where = path.string();
  CheckNames(tensors, where);
  std::vector<const NamedTensor*> order;
  order.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    const size_t a_size = DTypeSize(a->second.dtype);
    const size_t b_size = DTypeSize(b->second.dtype);
    return a_size != b_size ? a_size > b_size : a->first < b->first;
  });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  // Appended, not looked up: ordered_json's operator[] searches all keys.
  auto& entries = header.get_ref<nlohmann::ordered_json::object_t&>();
  for (const NamedTensor* item : order) {
    const TensorView& tensor = item->second;
    const auto elements = CheckedElements(tensor.shape);
    FLATQUANT_CHECK(elements.has_value());
    FLATQUANT_CHECK(tensor.data != nullptr || *elements == 0);
    const uint64_t end = offset + tensor.bytes();
    entries.emplace_back(item->first,
                         nlohmann::ordered_json{{"dtype", std::string(DTypeName(tensor.dtype))},
                                                {"shape", tensor.shape},
                                                {"data_offsets", {offset, end}}});
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::ordered_json::type_error&) {
    throw Error("safetensors.bad_name", where, "the metadata is not UTF-8 text",
                "pass UTF-8 metadata");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  if (text.size() > kMaxSafetensorsHeader) {
    throw Error("safetensors.header_too_large", where,
                "the header of " + std::to_string(tensors.size()) + " tensors would take " +
                    std::to_string(text.size()) + " bytes",
                "write several files");
  }

  AtomicFile file(path);
  char length[8];
  for (size_t i = 0; i < sizeof(length); ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  file.Write(length, sizeof(length));
  file.Write(text);
  for (const NamedTensor* item : order) file.Write(item->second.data, item->second.bytes());
  file.Commit();
}

}  // namespace flatquant
