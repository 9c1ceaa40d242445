#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/eval/tasks/task.h"

namespace flatquant {

// The tasks' rules, a file each; registry.cc lists them.
TaskItem ArcItem(const TaskRecord& record, const std::optional<std::string>& label);
TaskItem HellaswagItem(const TaskRecord& record, const std::optional<std::string>& label);
TaskItem LambadaItem(const TaskRecord& record, const std::optional<std::string>& label);
TaskItem PiqaItem(const TaskRecord& record, const std::optional<std::string>& label);
TaskItem WinograndeItem(const TaskRecord& record, const std::optional<std::string>& label);

// What several rules share.

// One context, each answer after a blank; characters are the answers'.
TaskItem AnswersTo(const std::string& context, const std::vector<std::string>& answers);

// The label of an item out of its record's member, its line of the label file, or
// both when they agree. Errors: eval.bad_label, eval.missing_field.
std::string LabelOf(const TaskRecord& record, std::string_view member,
                    const std::optional<std::string>& label);

// The index of `label` among `names`. Errors: eval.bad_label.
size_t IndexOfLabel(const TaskRecord& record, const std::string& label,
                    const std::vector<std::string>& names);

}  // namespace flatquant
