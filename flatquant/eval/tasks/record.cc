#include "flatquant/eval/tasks/record.h"

#include <utility>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

constexpr std::string_view kHint = "use the task's original release file";

}  // namespace

TaskRecord::TaskRecord(nlohmann::json value, std::string where)
    : value_(std::move(value)), where_(std::move(where)) {}

TaskRecord TaskRecord::Parse(std::string_view line, std::string where) {
  TaskRecord record(nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false),
                    std::move(where));
  if (record.value_.is_discarded()) record.Fail("eval.bad_json", "is not valid JSON", kHint);
  if (!record.value_.is_object()) record.Fail("eval.bad_json", "is not a JSON object", kHint);
  return record;
}

bool TaskRecord::Has(std::string_view member) const { return value_.contains(member); }

bool TaskRecord::IsText(std::string_view member) const {
  return Has(member) && Member(member).is_string();
}

const std::string& TaskRecord::Text(std::string_view member) const {
  const nlohmann::json& value = Member(member);
  if (!value.is_string()) FailType(member, "a string");
  return value.get_ref<const std::string&>();
}

std::vector<std::string> TaskRecord::Texts(std::string_view member) const {
  const nlohmann::json& list = Member(member);
  if (!list.is_array()) FailType(member, "a list of strings");
  std::vector<std::string> texts;
  for (const nlohmann::json& value : list) {
    if (!value.is_string()) FailType(member, "a list of strings");
    texts.push_back(value.get<std::string>());
  }
  return texts;
}

TaskRecord TaskRecord::Object(std::string_view member) const {
  const nlohmann::json& value = Member(member);
  if (!value.is_object()) FailType(member, "an object");
  return {value, where_};
}

std::vector<TaskRecord> TaskRecord::Objects(std::string_view member) const {
  const nlohmann::json& list = Member(member);
  if (!list.is_array()) FailType(member, "a list of objects");
  std::vector<TaskRecord> objects;
  for (const nlohmann::json& value : list) {
    if (!value.is_object()) FailType(member, "a list of objects");
    objects.emplace_back(value, where_);
  }
  return objects;
}

std::string TaskRecord::Label(std::string_view member) const {
  const nlohmann::json& value = Member(member);
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return value.dump();
  FailType(member, "a string or an integer");
}

void TaskRecord::Fail(std::string_view name, const std::string& what, std::string_view hint) const {
  throw Error(name, where_, what, hint);
}

const nlohmann::json& TaskRecord::Member(std::string_view member) const {
  const auto found = value_.find(member);
  if (found == value_.end()) {
    Fail("eval.missing_field", "has no \"" + std::string(member) + "\"", kHint);
  }
  return *found;
}

void TaskRecord::FailType(std::string_view member, std::string_view wanted) const {
  Fail("eval.bad_field", "\"" + std::string(member) + "\" is not " + std::string(wanted), kHint);
}

}  // namespace flatquant
