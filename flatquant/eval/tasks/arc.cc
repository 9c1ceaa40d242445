// ARC, easy and challenge: context "Question: STEM\nAnswer:", a blank and the text
// of each choice. Items have 3 to 5 choices, labelled A to E or 1 to 5.

#include "flatquant/eval/tasks/rules.h"

namespace flatquant {

TaskItem ArcItem(const TaskRecord& record, const std::optional<std::string>&) {
  std::vector<std::string> labels, answers;
  std::string stem;
  if (record.IsText("question")) {  // as Hugging Face's copy has it
    stem = record.Text("question");
    const TaskRecord choices = record.Object("choices");
    labels = choices.Texts("label");
    answers = choices.Texts("text");
  } else {
    const TaskRecord question = record.Object("question");
    stem = question.Text("stem");
    for (const TaskRecord& choice : question.Objects("choices")) {
      labels.push_back(choice.Text("label"));
      answers.push_back(choice.Text("text"));
    }
  }
  if (answers.size() < 2 || labels.size() != answers.size()) {
    record.Fail("eval.bad_field", "\"choices\" are not two or more with a label each",
                "use the task's original release file");
  }
  TaskItem item = AnswersTo("Question: " + stem + "\nAnswer:", answers);
  item.gold = IndexOfLabel(record, record.Label("answerKey"), labels);
  return item;
}

}  // namespace flatquant
