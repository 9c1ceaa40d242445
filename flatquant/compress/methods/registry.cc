#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/compress/methods/method.h"

namespace flatquant {
namespace compress {

#define FLATQUANT_METHOD(name, make) std::unique_ptr<Method> make();
#include "flatquant/compress/methods/methods.inc"
#undef FLATQUANT_METHOD

namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Method> (*make)();
};

constexpr Entry kMethods[] = {
#define FLATQUANT_METHOD(name, make) {name, make},
#include "flatquant/compress/methods/methods.inc"
#undef FLATQUANT_METHOD
};

}  // namespace

std::unique_ptr<Method> MakeMethod(std::string_view name) {
  for (const Entry& entry : kMethods) {
    if (entry.name == name) return entry.make();
  }
  return nullptr;
}

}  // namespace compress

std::vector<std::string> MethodNames() {
  std::vector<std::string> names;
  for (const auto& entry : compress::kMethods) names.emplace_back(entry.name);
  return names;
}

}  // namespace flatquant
