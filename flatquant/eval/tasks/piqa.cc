// PIQA: context "Question: GOAL\nAnswer:", a blank and each of two solutions.

#include "flatquant/eval/tasks/rules.h"

namespace flatquant {

TaskItem PiqaItem(const TaskRecord& record, const std::optional<std::string>& label) {
  TaskItem item = AnswersTo("Question: " + record.Text("goal") + "\nAnswer:",
                            {record.Text("sol1"), record.Text("sol2")});
  item.gold = IndexOfLabel(record, LabelOf(record, "label", label), {"0", "1"});
  return item;
}

}  // namespace flatquant
