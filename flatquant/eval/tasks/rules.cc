#include "flatquant/eval/tasks/rules.h"

#include <algorithm>

#include "flatquant/data/text_sources.h"

namespace flatquant {

TaskItem AnswersTo(const std::string& context, const std::vector<std::string>& answers) {
  TaskItem item;
  for (const std::string& answer : answers) {
    item.choices.push_back({context, " " + answer});
    item.characters.push_back(CountCharacters(answer));
  }
  return item;
}

std::string LabelOf(const TaskRecord& record, std::string_view member,
                    const std::optional<std::string>& label) {
  if (!label) return record.Label(member);
  const std::string text(StripWhitespace(*label));
  if (record.Has(member) && record.Label(member) != text) {
    record.Fail("eval.bad_label",
                "says \"" + std::string(member) + "\" is '" + record.Label(member) +
                    "', its line of the label file '" + text + "'",
                "take both files from one release");
  }
  return text;
}

size_t IndexOfLabel(const TaskRecord& record, const std::string& label,
                    const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), label);
  if (found != names.end()) return static_cast<size_t>(found - names.begin());
  std::string all;
  for (const std::string& name : names) all.append(all.empty() ? "" : ", ").append(name);
  record.Fail("eval.bad_label", "the label '" + label + "' is none of " + all,
              "use the task's original release file, a split with labels");
}

}  // namespace flatquant
