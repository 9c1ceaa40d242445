// Each task's rule on items written for this test, and what is said of bad files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "flatquant/base/error.h"
#include "flatquant/eval/tasks/task.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ScratchFolder;

using Files = std::vector<std::pair<std::string, std::string>>;

std::vector<TaskItem> Read(const std::string& task, const Files& files, int64_t limit = 0) {
  const std::filesystem::path folder = ScratchFolder();
  for (const auto& [name, text] : files) {
    std::filesystem::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << text;
  }
  return ReadTask(*ParseTaskList(task).at(0), folder, limit);
}

std::string Failure(const std::string& task, const Files& files) {
  try {
    Read(task, files);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::vector<std::string> Continuations(const TaskItem& item) {
  std::vector<std::string> texts;
  for (const TextPair& pair : item.choices) texts.push_back(pair.continuation);
  return texts;
}

const std::string kArc = R"({"id": "a", "question": {"stem": "What is wet?", "choices": [)"
                         R"({"text": "Fire", "label": "A"}, {"text": "Wäter", "label": "B"}, )"
                         R"({"text": "Sand", "label": "C"}]}, "answerKey": "B"})";

TEST(Tasks, Arc) {
  for (const char* name :
       {"ARC-Easy-Test.jsonl", "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl"}) {
    const auto items = Read("arc_easy", {{name, kArc + "\n\n"}});
    ASSERT_EQ(items.size(), 1u);
    for (const TextPair& pair : items[0].choices) {
      EXPECT_EQ(pair.context, "Question: What is wet?\nAnswer:");
    }
    EXPECT_THAT(Continuations(items[0]), ElementsAre(" Fire", " Wäter", " Sand"));
    EXPECT_THAT(items[0].characters, ElementsAre(4, 5, 4));  // without the blank, "ä" is one
    EXPECT_EQ(items[0].gold, 1u);
    EXPECT_THAT(items[0].where, HasSubstr("ARC-Easy-Test.jsonl:1"));
  }
}

TEST(Tasks, ArcAsHuggingFaceHasIt) {
  const auto items =
      Read("arc_challenge",
           {{"ARC-Challenge-Test.jsonl", R"({"question": "Q?", "choices": {"text": ["x", "y"], )"
                                         R"("label": ["1", "2"]}, "answerKey": 2})"}});
  EXPECT_EQ(items[0].choices[1].context, "Question: Q?\nAnswer:");
  EXPECT_EQ(items[0].gold, 1u);
}

TEST(Tasks, HellaswagFromItsParts) {
  const auto items = Read(
      "hellaswag",
      {{"hellaswag_val.jsonl",
        R"({"activity_label": "Cooking", "ctx_a": "[header] How to cook [title] Take a  pan.", )"
        R"("ctx_b": "the Chef", "endings": [" stirs [step] it.", "sings.", "runs [off", "eats."], )"
        R"("label": 3})"}});
  // "[...]" goes, " [title]" is a full stop, two blanks are one, CTX_B is capitalized.
  EXPECT_EQ(items[0].choices[0].context, "Cooking: How to cook. Take a pan. The chef");
  EXPECT_THAT(Continuations(items[0]),
              ElementsAre(" stirs it.", " sings.", " runs [off", " eats."));
  EXPECT_THAT(items[0].characters, ElementsAre(9, 6, 9, 5));
  EXPECT_EQ(items[0].gold, 3u);
}

TEST(Tasks, HellaswagPreparedIsTakenAsItIs) {
  const auto items = Read(
      "hellaswag",
      {{"hellaswag_val.jsonl", R"({"query": "A: b [x] c. he", "endings": ["1", "2  ", "3", "4"], )"
                               R"("label": "0"})"}});
  EXPECT_EQ(items[0].choices[2].context, "A: b [x] c. he");
  EXPECT_EQ(items[0].choices[1].continuation, " 2  ");
  EXPECT_EQ(items[0].gold, 0u);
}

TEST(Tasks, Piqa) {
  const Files files = {{"piqa_valid.jsonl",
                        "{\"goal\": \"sit\", \"sol1\": \"chair\", \"sol2\": \"a knife\"}\n"
                        "{\"goal\": \"cut\", \"sol1\": \"chair\", \"sol2\": \"knife\"}\n"},
                       {"piqa_valid-labels.lst", "0\n1\n"}};
  const auto items = Read("piqa", files);
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[0].choices[0].context, "Question: sit\nAnswer:");
  EXPECT_THAT(Continuations(items[0]), ElementsAre(" chair", " a knife"));
  EXPECT_THAT(items[0].characters, ElementsAre(5, 7));
  EXPECT_EQ(items[0].gold, 0u);
  EXPECT_EQ(items[1].gold, 1u);
  EXPECT_EQ(Read("piqa", files, 1).size(), 1u);
}

TEST(Tasks, WinograndeScoresWhatFollowsTheBlank) {
  const auto items = Read(
      "winogrande", {{"winogrande_1.1/dev.jsonl",
                      R"({"sentence": "Ann thanked Bo because _ had helped. ", "option1": "Ann", )"
                      R"("option2": "Bo", "answer": "2"})"}});
  EXPECT_EQ(items[0].choices[0].context, "Ann thanked Bo because Ann");
  EXPECT_EQ(items[0].choices[1].context, "Ann thanked Bo because Bo");
  EXPECT_THAT(Continuations(items[0]), ElementsAre(" had helped.", " had helped."));
  EXPECT_TRUE(items[0].characters.empty());
  EXPECT_EQ(items[0].gold, 1u);
}

TEST(Tasks, LambadaScoresTheLastWord) {
  const auto items = Read("lambada_openai", {{"lambada_test.jsonl",
                                              "{\"text\": \"He  said\\n\\n\\\"Hi, Jo\"}\n"
                                              "{\"text\": \"word\"}\n"}});
  EXPECT_EQ(items[0].choices[0].context, "He  said\n\n\"Hi,");
  EXPECT_EQ(items[0].choices[0].continuation, " Jo");
  EXPECT_EQ(items[1].choices[0].context, "");
  EXPECT_EQ(items[1].choices[0].continuation, " word");
}

TEST(Tasks, BadFiles) {
  const struct {
    std::string task;
    Files files;
    std::string name, says;
  } kBad[] = {
      {"piqa", {}, "[eval.no_task_file]", "piqa_valid.jsonl"},
      {"arc_easy", {{"ARC-Easy-Test.jsonl", " \n\n"}}, "[eval.no_items]", "is empty"},
      {"arc_easy", {{"ARC-Easy-Test.jsonl", kArc + "\n{\"id\": "}}, "[eval.bad_json]", ":2"},
      {"arc_easy", {{"ARC-Easy-Test.jsonl", "[1]"}}, "[eval.bad_json]", "not a JSON object"},
      {"lambada_openai", {{"lambada_test.jsonl", "{}"}}, "[eval.missing_field]", "\"text\""},
      {"lambada_openai", {{"lambada_test.jsonl", R"({"text": 3})"}}, "[eval.bad_field]", "string"},
      {"arc_easy",
       {{"ARC-Easy-Test.jsonl", R"({"question": {"stem": "a", "choices": []}, "answerKey": "A"})"}},
       "[eval.bad_field]",
       "choices"},
      {"arc_easy",
       {{"ARC-Easy-Test.jsonl",
         R"({"question": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, )"
         R"("answerKey": "E"})"}},
       "[eval.bad_label]",
       "'E' is none of A, B"},
      {"hellaswag",
       {{"hellaswag_val.jsonl", R"({"query": "a", "endings": ["x", "y"], "label": 0})"}},
       "[eval.bad_field]",
       "four"},
      {"hellaswag",
       {{"hellaswag_val.jsonl", R"({"query": "a", "endings": ["x", "", "z", "w"], "label": 0})"}},
       "[eval.bad_field]",
       "empty answer"},
      {"hellaswag",
       {{"hellaswag_val.jsonl", R"({"query": "a", "endings": ["x", "y", "z", "w"], "label": ""})"}},
       "[eval.bad_label]",
       "none of 0, 1, 2, 3"},
      {"piqa",
       {{"piqa_valid.jsonl", R"({"goal": "a", "sol1": "b", "sol2": "c"})"},
        {"piqa_valid-labels.lst", "0\n1\n"}},
       "[eval.label_count]",
       "2 labels for the 1 items"},
      {"piqa",
       {{"piqa_valid.jsonl", R"({"goal": "a", "sol1": "b", "sol2": "c"})"}},
       "[eval.missing_field]",
       "\"label\""},
      {"winogrande",
       {{"winogrande_xl_dev.jsonl",
         R"({"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"})"},
        {"winogrande_xl_dev-labels.lst", "2\n"}},
       "[eval.bad_label]",
       "release"},
      {"winogrande",
       {{"winogrande_xl_dev.jsonl",
         R"({"sentence": "a b", "option1": "x", "option2": "y", "answer": "1"})"}},
       "[eval.bad_field]",
       "no blank"},
  };
  for (const auto& bad : kBad) {
    EXPECT_THAT(Failure(bad.task, bad.files), AllOf(HasSubstr(bad.name), HasSubstr(bad.says)));
  }
}

TEST(Tasks, Lists) {
  EXPECT_EQ(ParseTaskList("all").size(), 6u);
  EXPECT_EQ(ParseTaskList("piqa,all").size(), 6u);
  EXPECT_EQ(ParseTaskList("piqa,arc_easy,piqa").size(), 2u);
  for (const char* bad : {"", "piqa,", "boolq", "piqa, arc_easy"}) {
    EXPECT_THROW(ParseTaskList(bad), Error) << bad;
  }
}

TEST(Tasks, TheReleasesHaveTheirNumbersOfItems) {
  FLATQUANT_NEEDS_SHARED("data/tasks");
  const std::vector<std::pair<std::string, size_t>> kTotals = {
      {"arc_easy", 2376}, {"arc_challenge", 1172}, {"hellaswag", 10042},
      {"piqa", 1838},     {"winogrande", 1267},    {"lambada_openai", 5153}};
  for (const auto& [task, total] : kTotals) {
    EXPECT_EQ(ReadTask(*ParseTaskList(task)[0], testing::SharedPath("data/tasks"), 0).size(), total)
        << task;
  }
}

}  // namespace
}  // namespace flatquant
