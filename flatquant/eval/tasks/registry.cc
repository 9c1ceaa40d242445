#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/data/text_file.h"
#include "flatquant/data/text_sources.h"
#include "flatquant/eval/tasks/rules.h"

namespace flatquant {
namespace fs = std::filesystem;

std::span<const TaskRule> TaskRules() {
  using enum TaskScoring;
  static const std::vector<TaskRule> rules = {
      {"arc_easy",
       kNormalizedChoice,
       {"ARC-Easy-Test.jsonl", "ARC-Easy/ARC-Easy-Test.jsonl",
        "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl"},
       {},
       ArcItem},
      {"arc_challenge",
       kNormalizedChoice,
       {"ARC-Challenge-Test.jsonl", "ARC-Challenge/ARC-Challenge-Test.jsonl",
        "ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl"},
       {},
       ArcItem},
      {"hellaswag", kNormalizedChoice, {"hellaswag_val.jsonl"}, {}, HellaswagItem},
      {"piqa",
       kNormalizedChoice,
       {"piqa_valid.jsonl", "physicaliqa-train-dev/dev.jsonl"},
       {"piqa_valid-labels.lst", "physicaliqa-train-dev/dev-labels.lst"},
       PiqaItem},
      {"winogrande",
       kChoice,
       {"winogrande_xl_dev.jsonl", "winogrande_1.1/dev.jsonl"},
       {"winogrande_xl_dev-labels.lst", "winogrande_1.1/dev-labels.lst"},
       WinograndeItem},
      {"lambada_openai", kLastWord, {"lambada_test.jsonl"}, {}, LambadaItem},
  };
  return rules;
}

std::vector<const TaskRule*> ParseTaskList(std::string_view text) {
  std::vector<const TaskRule*> tasks;
  const auto add = [&](const TaskRule& rule) {
    if (std::find(tasks.begin(), tasks.end(), &rule) == tasks.end()) tasks.push_back(&rule);
  };
  for (bool more = true; more;) {
    const size_t comma = text.find(',');
    const std::string_view name = text.substr(0, comma);
    more = comma != std::string_view::npos;
    if (more) text.remove_prefix(comma + 1);
    bool known = name == "all";
    for (const TaskRule& rule : TaskRules()) {
      if (name != "all" && name != rule.name) continue;
      add(rule);
      known = true;
    }
    if (known) continue;
    std::string names = "all";
    for (const TaskRule& rule : TaskRules()) names.append(", ").append(rule.name);
    throw Error("eval.unknown_task", "'" + std::string(name) + "'", "is no task",
                "tasks are " + names);
  }
  return tasks;
}

namespace {

// The first of the names that the folder has.
std::optional<fs::path> FindFile(const fs::path& folder,
                                 const std::vector<std::string_view>& names) {
  for (const std::string_view name : names) {
    std::error_code ignored;
    if (fs::is_regular_file(folder / name, ignored)) return folder / name;
  }
  return std::nullopt;
}

// The lines that are not blank, with their numbers from 1.
struct NumberedLine {
  size_t number;
  std::string_view text;
};
std::vector<NumberedLine> FilledLines(std::string_view text) {
  std::vector<NumberedLine> lines;
  size_t number = 0;
  for (std::string_view line : SplitLines(text)) {
    ++number;
    if (!StripWhitespace(line).empty()) lines.push_back({number, line});
  }
  return lines;
}

}  // namespace

std::vector<TaskItem> ReadTask(const TaskRule& rule, const fs::path& folder, int64_t limit) {
  const std::optional<fs::path> path = FindFile(folder, rule.files);
  if (!path) {
    throw Error(
        "eval.no_task_file", folder.string(),
        "has no data of " + std::string(rule.name) + " (" + std::string(rule.files[0]) + ")",
        "put the task's release file there or name another --tasks-dir");
  }
  const std::string text = ReadTextFile(*path);
  const std::vector<NumberedLine> lines = FilledLines(text);
  if (lines.empty()) {
    throw Error("eval.no_items", path->string(), "is empty", "use the task's release file");
  }
  std::string label_text;
  std::vector<NumberedLine> labels;
  if (const auto label_path = FindFile(folder, rule.label_files)) {
    label_text = ReadTextFile(*label_path);
    labels = FilledLines(label_text);
    if (labels.size() != lines.size()) {
      throw Error("eval.label_count", label_path->string(),
                  "has " + std::to_string(labels.size()) + " labels for the " +
                      std::to_string(lines.size()) + " items of " + path->filename().string(),
                  "take both files from one release");
    }
  }
  const size_t count =
      limit > 0 ? std::min(lines.size(), static_cast<size_t>(limit)) : lines.size();
  std::vector<TaskItem> items;
  for (size_t i = 0; i < count; ++i) {
    const std::string where = path->string() + ":" + std::to_string(lines[i].number);
    std::optional<std::string> label;
    if (!labels.empty()) label = std::string(labels[i].text);
    const TaskRecord record = TaskRecord::Parse(lines[i].text, where);
    TaskItem item = rule.item(record, label);
    if (std::count(item.characters.begin(), item.characters.end(), 0) > 0) {
      record.Fail("eval.bad_field", "has an empty answer, which has no likelihood per character",
                  "use the task's original release file");
    }
    item.where = where;
    items.push_back(std::move(item));
  }
  return items;
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

}  // namespace flatquant
