#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// A JSON object of a task's data, every access checked. Errors: eval.missing_field
// and eval.bad_field, naming file, line and member.
class TaskRecord {
 public:
  // where: "file:line".
  TaskRecord(nlohmann::json value, std::string where);

  // The object in one line of a file. Errors: eval.bad_json.
  static TaskRecord Parse(std::string_view line, std::string where);

  const std::string& where() const { return where_; }
  bool Has(std::string_view member) const;
  bool IsText(std::string_view member) const;

  const std::string& Text(std::string_view member) const;
  std::vector<std::string> Texts(std::string_view member) const;
  TaskRecord Object(std::string_view member) const;
  std::vector<TaskRecord> Objects(std::string_view member) const;

  // A label as text, which data sets write as a string or as an integer.
  std::string Label(std::string_view member) const;

  // Throws Error(name, where(), what, hint).
  [[noreturn]] void Fail(std::string_view name, const std::string& what,
                         std::string_view hint) const;

 private:
  const nlohmann::json& Member(std::string_view member) const;
  [[noreturn]] void FailType(std::string_view member, std::string_view wanted) const;

  nlohmann::json value_;
  std::string where_;
};

}  // namespace flatquant
