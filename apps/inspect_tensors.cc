#include "apps/inspect_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <tuple>

#include "apps/console.h"
#include "flatquant/base/progress.h"

namespace flatquant {
namespace {

// A tensor name around its first number that stands alone between dots.
struct NumberedName {
  std::string before;
  std::string after;
  uint64_t number = 0;
  bool numbered = false;
};

NumberedName SplitAtNumber(const std::string& name) {
  for (size_t start = 0; start < name.size();) {
    const size_t end = std::min(name.find('.', start), name.size());
    uint64_t number = 0;
    const auto [stop, error] = std::from_chars(name.data() + start, name.data() + end, number);
    if (end > start && error == std::errc() && stop == name.data() + end) {
      return {name.substr(0, start), name.substr(end), number, true};
    }
    start = end + 1;
  }
  return {name, "", 0, false};
}

struct Group {
  NumberedName name;
  const Tensor* tensor = nullptr;  // of the first member; all have its type and shape
  std::vector<uint64_t> numbers;
};

std::vector<Group> Fold(const TensorMap& tensors, bool all) {
  std::vector<Group> groups;
  std::map<std::tuple<bool, std::string, std::string, DType, std::vector<int64_t>>, size_t> index;
  for (const auto& [name, tensor] : tensors) {
    const NumberedName split = all ? NumberedName{name, "", 0, false} : SplitAtNumber(name);
    const auto [found, fresh] = index.try_emplace(
        {split.numbered, split.before, split.after, tensor.dtype, tensor.shape}, groups.size());
    if (fresh) groups.push_back({split, &tensor, {}});
    groups[found->second].numbers.push_back(split.number);
  }
  for (Group& group : groups) std::sort(group.numbers.begin(), group.numbers.end());
  return groups;
}

}  // namespace

std::string Ranges(const std::vector<uint64_t>& numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (!text.empty()) text += ',';
    text += std::to_string(numbers[i]);
    if (last > i) text += "-" + std::to_string(numbers[last]);
    i = last + 1;
  }
  return text;
}

std::vector<std::string> TensorTable(const TensorMap& tensors, bool all) {
  struct Row {
    std::string name;
    std::string type;
    std::string bytes;
  };
  std::vector<Row> rows;
  size_t name_width = 0;
  size_t type_width = 0;
  for (const Group& group : Fold(tensors, all)) {
    const size_t count = group.numbers.size();
    Row row;
    row.name = group.name.before;
    if (count > 1) {
      row.name += "{" + Ranges(group.numbers) + "}";
    } else if (group.name.numbered) {
      row.name += std::to_string(group.name.number);
    }
    row.name = Printable(row.name + group.name.after);
    row.type = fmt::format("{} {}", DTypeName(group.tensor->dtype), group.tensor->ShapeString());
    if (count > 1) row.type += fmt::format(" x{}", count);
    row.bytes = FormatBytes(group.tensor->bytes() * count);
    name_width = std::max(name_width, std::min<size_t>(row.name.size(), 80));
    type_width = std::max(type_width, row.type.size());
    rows.push_back(std::move(row));
  }
  std::vector<std::string> lines;
  for (const Row& row : rows) {
    lines.push_back(fmt::format("  {:<{}}  {:<{}}  {:>9}", row.name, name_width, row.type,
                                type_width, row.bytes));
  }
  return lines;
}

nlohmann::ordered_json TensorsJson(const TensorMap& tensors) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& [name, tensor] : tensors) {
    list.push_back({{"name", name},
                    {"dtype", DTypeName(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"bytes", tensor.bytes()}});
  }
  return list;
}

uint64_t TotalBytes(const TensorMap& tensors) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += tensor.bytes();
  return bytes;
}

uint64_t TotalElements(const TensorMap& tensors) {
  uint64_t elements = 0;
  for (const auto& [name, tensor] : tensors) elements += tensor.elements();
  return elements;
}

}  // namespace flatquant
