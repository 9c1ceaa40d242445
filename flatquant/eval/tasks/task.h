#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/eval/tasks/record.h"

namespace flatquant {

// A text and one way to go on; the model tells how likely that way is.
struct TextPair {
  std::string context;
  std::string continuation;
};

// One question of a task.
struct TaskItem {
  std::vector<TextPair> choices;  // at least one
  size_t gold = 0;                // the right one
  // Characters (code points) of each choice's answer without the blank in front,
  // what acc_norm divides by; empty where a task has no acc_norm.
  std::vector<int64_t> characters;
  std::string where;  // "file:line", for messages and the log
};

// How a task's answers are judged.
enum class TaskScoring {
  kChoice,            // acc: the likeliest choice is the right one
  kNormalizedChoice,  // acc, and acc_norm: the likeliest per character
  kLastWord,          // acc: greedy decoding gives the word; perplexity of the word
};

// A task as lm-evaluation-harness defines it, 0-shot. Adding one: a file with its
// rule beside the others, its line in registry.cc.
struct TaskRule {
  std::string_view name;
  TaskScoring scoring;
  // Names that its data may have below the tasks' folder, first match wins.
  std::vector<std::string_view> files;
  // Names of a file with one label per item, for releases that keep them apart.
  std::vector<std::string_view> label_files;
  // One line of the data as a question. label: the item's line of the label file.
  TaskItem (*item)(const TaskRecord& record, const std::optional<std::string>& label);
};

// All tasks, in the order in which they are reported.
std::span<const TaskRule> TaskRules();

// The tasks of a comma-separated list, "all" being all of them, in the list's order
// and each once. Errors: eval.unknown_task (names those that there are).
std::vector<const TaskRule*> ParseTaskList(std::string_view text);

// A task's questions from `folder` (gzip and Zstandard as in ReadTextFile), the
// first `limit` where that is above 0. Errors, each naming file and line:
// eval.no_task_file, eval.no_items, eval.label_count, eval.bad_json,
// eval.missing_field, eval.bad_field, eval.bad_label, file.*.
std::vector<TaskItem> ReadTask(const TaskRule& rule, const std::filesystem::path& folder,
                               int64_t limit);

// The number of code points of valid UTF-8.
int64_t CountCharacters(std::string_view text);

}  // namespace flatquant
