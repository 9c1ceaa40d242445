#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace flatquant {

// Bad input or a failing machine: something the user can mend. Its message is
// one line that says what is wrong, where, and what to do:
//
//   model.safetensors: tensor 'lm_head.weight' ends at byte 120, past the data's
//   100; download the file again [safetensors.out_of_bounds]
//
// The name in brackets is stable, so that tests and scripts can rely on it.
// Programmer errors are FLATQUANT_CHECK's business instead.
class Error : public std::runtime_error {
 public:
  // name:  "room.problem", lower case with underscores
  // where: a file, tensor, option or token position
  // what:  what is wrong there
  // hint:  what the user can do about it (may be empty)
  Error(std::string_view name, std::string_view where, std::string_view what,
        std::string_view hint = {});

  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

namespace internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition) noexcept;
}  // namespace internal

// Aborts with the condition's text when a programmer's assumption is false.
// On in every build type; keep it out of inner loops.
#define FLATQUANT_CHECK(condition)    \
  ((condition) ? static_cast<void>(0) \
               : ::flatquant::internal::CheckFailed(__FILE__, __LINE__, #condition))

}  // namespace flatquant
