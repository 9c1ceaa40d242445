#pragma once

#include <filesystem>
#include <functional>

namespace flatquant {

// A folder that appears under its final name all at once, or not at all. It is
// built under a hidden name beside the final one, made durable, and renamed; a
// folder that it replaces is swapped out in the same instant where the file
// system can do that (RENAME_EXCHANGE), else by two renames with a moment in
// between in which the name is absent.
//
// A writer that dies leaves its hidden folder (".NAME.PID.N.partial") behind;
// the next one for the same name removes it. Such folders are locked while their
// writer lives, so that nobody removes one that is in use.
//
// Whoever watches the final name sees the old folder, the new one, or (two
// renames only) none; kill -9 and a full disk included. After a kill between two
// renames the old folder waits as ".NAME.PID.N.replaced"; the next writer puts it back.
//
// Errors: packed.not_replaceable, file.create, file.rename.
class AtomicDirectory {
 public:
  // Whether the folder at a path may be replaced; asked at the start and again
  // at the end. An empty folder always may.
  using Replaceable = std::function<bool(const std::filesystem::path&)>;

  // path: the final name; its parent folders are created if need be. A symbolic
  // link to a folder stands for that folder.
  AtomicDirectory(const std::filesystem::path& path, Replaceable replaceable);
  ~AtomicDirectory();  // removes the hidden folder unless committed
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  // Where to build. Files written here must be durable (AtomicFile) before Commit.
  const std::filesystem::path& path() const { return partial_; }

  void Commit();

 private:
  void CreatePartial();
  void Replace();

  std::filesystem::path final_;
  std::filesystem::path partial_;
  Replaceable replaceable_;
  int lock_ = -1;  // the hidden folder, open and locked
};

// Throws packed.not_replaceable if AtomicDirectory would refuse this name.
void CheckDestination(const std::filesystem::path& path,
                      const AtomicDirectory::Replaceable& replaceable);

namespace packed_internal {

// The two ways of putting `from` in the place of `to`, both existing folders on
// one file system. Exchange leaves the old folder at `from`, and returns false,
// nothing done, where the file system cannot swap. TwoRenames leaves it at `aside`.
bool Exchange(const std::filesystem::path& from, const std::filesystem::path& to);
void TwoRenames(const std::filesystem::path& from, const std::filesystem::path& to,
                const std::filesystem::path& aside);

// What a new writer for `final_name` does first: restores or removes what dead
// writers left beside it.
void CleanUpAfterDeadWriters(const std::filesystem::path& final_name);

}  // namespace packed_internal
}  // namespace flatquant
