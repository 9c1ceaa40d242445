// Looks at the tree itself: the arrows between rooms, the LibTorch wall, and the
// shape that ARCHITECTURE.md promises.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

// Which rooms each room may include, besides itself.
const std::map<std::string, std::set<std::string>>& AllowedArrows() {
  static const std::map<std::string, std::set<std::string>> arrows = {
      {"base", {}},
      {"checkpoint", {"base"}},
      {"tokenizer", {"base"}},
      {"data", {"base", "tokenizer"}},
      {"model", {"base", "checkpoint"}},
      {"packed", {"base", "checkpoint", "model"}},
      {"compress", {"base", "checkpoint", "tokenizer", "data", "model", "packed"}},
      {"kernels", {"base"}},
      {"runtime", {"base", "checkpoint", "tokenizer", "model", "packed", "kernels"}},
      {"bench", {"base", "model", "packed", "kernels", "runtime"}},
      {"eval", {"base", "tokenizer", "data", "model", "packed", "runtime"}},
      {"report", {"base", "model", "packed"}},
  };
  return arrows;
}

struct SourceFile {
  fs::path path;     // relative to the project's root
  std::string room;  // below flatquant/, empty elsewhere
  std::vector<std::string> lines;
  bool is_test = false;
};

std::vector<SourceFile> ReadTree() {
  const fs::path root = testing::SourcePath("");
  const std::set<std::string> extensions = {".h", ".cc", ".inc", ".cu", ".cuh"};
  std::vector<SourceFile> files;
  for (const char* top : {"flatquant", "apps", "tests", "bench"}) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !extensions.contains(entry.path().extension().string())) {
        continue;
      }
      SourceFile file;
      file.path = fs::relative(entry.path(), root);
      auto part = file.path.begin();
      if (*part == "flatquant" && std::distance(part, file.path.end()) > 2) {
        file.room = (++part)->string();
      }
      const std::string name = file.path.filename().string();
      file.is_test = name == "test.cc" || name.ends_with("_test.cc");
      std::ifstream stream(entry.path());
      for (std::string line; std::getline(stream, line);) file.lines.push_back(line);
      files.push_back(std::move(file));
    }
  }
  return files;
}

const std::vector<SourceFile>& Tree() {
  static const std::vector<SourceFile> files = ReadTree();
  return files;
}

// Calls visit(file, line number, included path) for every #include.
template <typename Visit>
void ForEachInclude(const Visit& visit) {
  static const std::regex include(R"(^\s*#\s*include\s*[<"]([^>"]+)[>"])");
  for (const SourceFile& file : Tree()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      std::smatch match;
      if (std::regex_search(file.lines[i], match, include)) visit(file, i + 1, match[1].str());
    }
  }
}

TEST(ArchitectureTest, TheTreeIsThere) {
  EXPECT_GT(Tree().size(), 50u);
  std::set<std::string> rooms;
  for (const SourceFile& file : Tree()) {
    if (!file.room.empty()) rooms.insert(file.room);
  }
  for (const std::string& room : rooms) {
    EXPECT_TRUE(AllowedArrows().contains(room)) << "room " << room << " has no line in this test";
  }
  for (const auto& [room, arrows] : AllowedArrows()) {
    EXPECT_TRUE(rooms.contains(room)) << "room " << room << " is gone";
  }
}

TEST(ArchitectureTest, RoomsIncludeOnlyRoomsAboveThem) {
  ForEachInclude([](const SourceFile& file, size_t line, const std::string& included) {
    if (file.room.empty() || !included.starts_with("flatquant/")) return;
    const std::string target = included.substr(10, included.find('/', 10) - 10);
    EXPECT_TRUE(target == file.room || AllowedArrows().at(file.room).contains(target))
        << file.path << ":" << line << " includes " << included;
  });
}

TEST(ArchitectureTest, LibTorchStaysInCompress) {
  static const std::regex torch("^(torch|ATen|c10|caffe2)/");
  ForEachInclude([](const SourceFile& file, size_t line, const std::string& included) {
    EXPECT_FALSE(std::regex_search(included, torch) && file.room != "compress")
        << file.path << ":" << line << " includes " << included;
  });
}

// The compression half's public face can be included without LibTorch.
TEST(ArchitectureTest, OtherRoomsSeeOnlyTorchFreeHeadersOfCompress) {
  std::set<std::string> with_torch;
  ForEachInclude([&](const SourceFile& file, size_t, const std::string& included) {
    if (file.room == "compress" && included.starts_with("torch/")) {
      with_torch.insert(file.path.string());
    }
  });
  EXPECT_FALSE(with_torch.empty());
  ForEachInclude([&](const SourceFile& file, size_t line, const std::string& included) {
    EXPECT_FALSE(file.room != "compress" && with_torch.contains(included))
        << file.path << ":" << line << " includes " << included;
  });
}

TEST(ArchitectureTest, CudaStaysInCudaFiles) {
  static const std::regex cuda("^(cuda|cublas|nccl|cutlass|cute)");
  ForEachInclude([](const SourceFile& file, size_t line, const std::string& included) {
    const std::string name = file.path.filename().string();
    const bool cuda_file =
        name.ends_with(".cu") || name.ends_with(".cuh") || name.find("_cuda") != std::string::npos;
    EXPECT_FALSE(std::regex_search(included, cuda) && !cuda_file)
        << file.path << ":" << line << " includes " << included;
  });
}

TEST(ArchitectureTest, EveryRoomHasAReadme) {
  for (const auto& [room, arrows] : AllowedArrows()) {
    EXPECT_TRUE(fs::exists(testing::SourcePath("flatquant/" + room + "/README.md"))) << room;
  }
  EXPECT_TRUE(fs::exists(testing::SourcePath("flatquant/README.md")));
}

TEST(ArchitectureTest, EveryKernelFolderIsComplete) {
  int folders = 0;
  for (const auto& entry : fs::directory_iterator(testing::SourcePath("flatquant/kernels"))) {
    if (!entry.is_directory()) continue;
    const fs::path folder = entry.path();
    const std::string name = folder.filename().string();
    if (name == "cuda") continue;    // what the CUDA files of all operations share
    if (name == "limits") continue;  // measures the machine: there is no result to compare
    ++folders;
    EXPECT_TRUE(fs::exists(folder / (name + ".h"))) << name << " lacks its contract";
    EXPECT_TRUE(fs::exists(folder / "reference.cc")) << name << " lacks its reference";
    EXPECT_TRUE(fs::exists(folder / "test.cc")) << name << " lacks its test";
  }
  EXPECT_GT(folders, 4);
}

TEST(ArchitectureTest, FilesStaySmallAndNamesSayWhatTheyAreFor) {
  static const std::regex vague("(^|_)(utils?|helpers?|misc|common)(_|\\.)");
  for (const SourceFile& file : Tree()) {
    EXPECT_LE(file.lines.size(), 600u) << file.path;
    EXPECT_FALSE(std::regex_search(file.path.filename().string(), vague)) << file.path;
  }
}

}  // namespace
}  // namespace flatquant
