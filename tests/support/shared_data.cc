#include "tests/support/shared_data.h"

#include <cstdlib>
#include <string>
#include <vector>

namespace flatquant::testing {
namespace fs = std::filesystem;

namespace {

struct ScratchFolders {
  std::vector<fs::path> folders;
  ~ScratchFolders() {
    for (const fs::path& folder : folders) {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  }
};

}  // namespace

fs::path SourcePath(std::string_view relative) { return fs::path(FLATQUANT_SOURCE_DIR) / relative; }

fs::path SharedPath(std::string_view relative) {
  const char* folder = std::getenv("FLATQUANT_SHARED");
  const fs::path root = folder != nullptr ? fs::path(folder) : SourcePath("../shared");
  return root / relative;
}

fs::path ScratchFolder() {
  static ScratchFolders folders;
  std::string name = (fs::temp_directory_path() / "flatquant-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot create " + name);
  folders.folders.emplace_back(name);
  return name;
}

}  // namespace flatquant::testing
