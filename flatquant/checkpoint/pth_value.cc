#include "flatquant/checkpoint/pth_value.h"

#include <set>
#include <string_view>
#include <unordered_map>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/pickle_machine.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

constexpr std::string_view kHint = "use a file written by torch.save that holds only tensors";

// The values that a container refers to, keys included; null for a leaf.
const std::vector<const PthValue*>* ItemsOf(const PthValue& value) {
  if (const auto* list = value.As<PthValue::List>()) return &list->items;
  if (const auto* tuple = value.As<PthValue::Tuple>()) return &tuple->items;
  return nullptr;
}

size_t ChildCount(const PthValue& value) {
  if (const auto* dict = value.As<PthValue::Dict>()) return dict->items.size();
  const auto* items = ItemsOf(value);
  return items == nullptr ? 0 : items->size();
}

const PthValue* Child(const PthValue& value, size_t i) {
  if (const auto* dict = value.As<PthValue::Dict>()) return dict->items[i].second;
  return (*ItemsOf(value))[i];
}

bool IsContainer(const PthValue& value) {
  return value.As<PthValue::Dict>() != nullptr || ItemsOf(value) != nullptr;
}

void CheckKeys(const PthValue::Dict& dict, const std::string& where) {
  std::set<std::string_view> names;
  std::set<int64_t> numbers;
  for (const auto& [key, value] : dict.items) {
    bool fresh = true;
    std::string shown;
    if (const auto* name = key->As<std::string>()) {
      fresh = names.insert(*name).second;
      shown = *name;
    } else {
      const int64_t number = *key->As<int64_t>();
      fresh = numbers.insert(number).second;
      shown = std::to_string(number);
    }
    if (!fresh) {
      throw Error("pth.duplicate_key", where, "a dict has the key " + Quoted(shown) + " twice",
                  kHint);
    }
  }
}

// What is known of a container once all its values are.
struct Measure {
  bool open = true;   // still being visited: meeting it again means a cycle
  int depth = 1;      // containers from here to the deepest leaf
  uint64_t size = 1;  // values below, each as often as it can be reached
};

struct Visit {
  const PthValue* value;
  size_t next;
};

}  // namespace

void ValidatePthTree(const PthTree& tree, const std::string& where) {
  std::unordered_map<const PthValue*, Measure> measures;
  std::vector<Visit> path;
  const auto enter = [&](const PthValue* value) {
    if (value->As<PthValue::Global>() != nullptr || value->As<PthValue::Storage>() != nullptr) {
      throw Error("pth.bad_pickle", where, "holds a bare class or storage as a value", kHint);
    }
    if (!IsContainer(*value)) return;
    if (const auto* dict = value->As<PthValue::Dict>()) CheckKeys(*dict, where);
    measures.emplace(value, Measure{});
    path.push_back({value, 0});
  };
  enter(tree.root);
  while (!path.empty()) {
    Visit& visit = path.back();
    Measure& own = measures.at(visit.value);
    if (visit.next == ChildCount(*visit.value)) {
      own.open = false;
      path.pop_back();
      continue;
    }
    const PthValue* child = Child(*visit.value, visit.next);
    const auto known = measures.find(child);
    if (known == measures.end() && IsContainer(*child)) {
      // Come back to this child once it has been measured.
      if (path.size() == static_cast<size_t>(kMaxPthDepth)) {
        throw Error("pth.too_deep", where,
                    "nests containers deeper than " + std::to_string(kMaxPthDepth), kHint);
      }
      enter(child);
      continue;
    }
    ++visit.next;
    if (known == measures.end()) {
      enter(child);
      own.size += 1;
    } else if (known->second.open) {
      throw Error("pth.cycle", where, "has a container that contains itself", kHint);
    } else {
      own.depth = std::max(own.depth, known->second.depth + 1);
      own.size += known->second.size;
    }
    if (own.depth + static_cast<int>(path.size()) - 1 > kMaxPthDepth) {
      throw Error("pth.too_deep", where,
                  "nests containers deeper than " + std::to_string(kMaxPthDepth), kHint);
    }
    if (own.size > kMaxPthValues) {
      throw Error("pth.too_large", where,
                  "holds more than " + std::to_string(kMaxPthValues) + " values", kHint);
    }
  }
}

}  // namespace flatquant
