#include "flatquant/packed/atomic_directory.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kPartial = ".partial";
constexpr std::string_view kReplaced = ".replaced";

[[noreturn]] void Fail(std::string_view name, const fs::path& path, std::string_view action,
                       std::string_view hint) {
  throw Error(name, path.string(), std::string(action) + ": " + std::strerror(errno), hint);
}

// The folder that a path means: absolute, links resolved, no trailing slash.
fs::path Resolve(const fs::path& path) {
  std::error_code error;
  fs::path resolved = fs::absolute(path, error);
  if (!error) resolved = fs::weakly_canonical(resolved, error);
  if (error || path.empty()) {
    throw Error("file.create", path.string(),
                "is not a usable path: " + (error ? error.message() : "it is empty"),
                "name the output directory");
  }
  if (!resolved.has_filename()) resolved = resolved.parent_path();
  return resolved;
}

enum class State { kAbsent, kEmpty, kReplaceable };

State Examine(const fs::path& path, const AtomicDirectory::Replaceable& replaceable) {
  constexpr std::string_view kHint = "choose another output directory, or remove it yourself";
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  if (status.type() == fs::file_type::not_found) return State::kAbsent;
  if (error || status.type() != fs::file_type::directory) {
    throw Error("packed.not_replaceable", path.string(), "exists and is not a directory", kHint);
  }
  const bool empty = fs::is_empty(path, error);
  if (!error && empty) return State::kEmpty;
  if (!error && replaceable(path)) return State::kReplaceable;
  throw Error("packed.not_replaceable", path.string(),
              "exists and does not hold a packed model, so it is not overwritten", kHint);
}

struct Lock {
  enum class State { kHeld, kTaken, kUnsupported };
  State state;
  int descriptor = -1;  // of the folder, when held; closing it unlocks
};

// Locks a folder. kTaken: a living process has it, or it is gone. The kernel
// drops a lock with its owner.
Lock LockFolder(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (descriptor < 0) return {Lock::State::kTaken};
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const bool taken = errno == EWOULDBLOCK || errno == EINTR;
    ::close(descriptor);
    return {taken ? Lock::State::kTaken : Lock::State::kUnsupported};
  }
  // The name must still mean the folder that was locked: somebody may have
  // removed or renamed it between open and flock.
  struct stat opened;
  struct stat named;
  if (::fstat(descriptor, &opened) == 0 && ::lstat(folder.c_str(), &named) == 0 &&
      opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) {
    return {Lock::State::kHeld, descriptor};
  }
  ::close(descriptor);
  return {Lock::State::kTaken};
}

// The name beside final_name that this process gives to its n-th folder.
fs::path HiddenName(const fs::path& final_name, int n, std::string_view kind) {
  std::string name = "." + final_name.filename().string() + "." + std::to_string(::getpid()) + "." +
                     std::to_string(n);
  return final_name.parent_path() / name.append(kind);
}

// Whether `name` is one that HiddenName gives for final_name.
bool IsHiddenName(std::string_view name, const fs::path& final_name, std::string_view kind) {
  const std::string prefix = "." + final_name.filename().string() + ".";
  if (name.size() <= prefix.size() + kind.size() || !name.starts_with(prefix) ||
      !name.ends_with(kind)) {
    return false;
  }
  const std::string_view middle =
      name.substr(prefix.size(), name.size() - prefix.size() - kind.size());
  const size_t dot = middle.find('.');
  const auto digits = [](std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
  };
  return dot != middle.npos && digits(middle.substr(0, dot)) && digits(middle.substr(dot + 1));
}

void RemoveQuietly(const fs::path& folder) {
  std::error_code ignored;  // what stays is removed by the next writer
  fs::remove_all(folder, ignored);
}

}  // namespace

namespace packed_internal {

bool Exchange(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  Fail("file.rename", to, "cannot put the finished directory in place", "check the folder");
}

void TwoRenames(const fs::path& from, const fs::path& to, const fs::path& aside) {
  if (::rename(to.c_str(), aside.c_str()) != 0) {
    Fail("file.rename", to, "cannot move the old directory aside", "check the folder");
  }
  if (::rename(from.c_str(), to.c_str()) == 0) return;
  const int reason = errno;
  // The name is free again, so this fails only with the disk.
  if (::rename(aside.c_str(), to.c_str()) != 0) {
    throw Error("file.rename", to.string(),
                "cannot put the finished directory in place, nor the old one back",
                "the old directory is now " + aside.string());
  }
  errno = reason;
  Fail("file.rename", to, "cannot put the finished directory in place", "check the folder");
}

void CleanUpAfterDeadWriters(const fs::path& final_name) {
  std::error_code error;
  std::vector<fs::path> partial;
  std::vector<fs::path> replaced;
  for (fs::directory_iterator at(final_name.parent_path(), error), end; !error && at != end;
       at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (IsHiddenName(name, final_name, kPartial)) partial.push_back(at->path());
    if (IsHiddenName(name, final_name, kReplaced)) replaced.push_back(at->path());
  }
  for (const fs::path& folder : replaced) {
    const Lock lock = LockFolder(folder);
    if (lock.state != Lock::State::kHeld) continue;
    const bool taken = fs::exists(fs::symlink_status(final_name, error));
    if (taken) {
      RemoveQuietly(folder);
    } else {
      fs::rename(folder, final_name, error);
    }
    ::close(lock.descriptor);
  }
  for (const fs::path& folder : partial) {
    const Lock lock = LockFolder(folder);
    if (lock.state != Lock::State::kHeld) continue;
    RemoveQuietly(folder);
    ::close(lock.descriptor);
  }
}

}  // namespace packed_internal

void CheckDestination(const fs::path& path, const AtomicDirectory::Replaceable& replaceable) {
  Examine(Resolve(path), replaceable);
}

AtomicDirectory::AtomicDirectory(const fs::path& path, Replaceable replaceable)
    : final_(Resolve(path)), replaceable_(std::move(replaceable)) {
  std::error_code error;
  fs::create_directories(final_.parent_path(), error);
  if (error) {
    throw Error("file.create", final_.parent_path().string(),
                "cannot create the folder: " + error.message(), "check the path");
  }
  packed_internal::CleanUpAfterDeadWriters(final_);
  Examine(final_, replaceable_);
  CreatePartial();
}

void AtomicDirectory::CreatePartial() {
  for (int n = 0;; ++n) {
    partial_ = HiddenName(final_, n, kPartial);
    if (::mkdir(partial_.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      Fail("file.create", partial_, "cannot create a folder", "check the folder above it");
    }
    // Another writer's clean-up may take it between the two calls. A file system
    // without locks is fine: what cannot be locked is never cleaned up.
    const Lock lock = LockFolder(partial_);
    lock_ = lock.descriptor;
    if (lock.state != Lock::State::kTaken) return;
  }
}

AtomicDirectory::~AtomicDirectory() {
  if (!partial_.empty()) RemoveQuietly(partial_);
  if (lock_ >= 0) ::close(lock_);
}

void AtomicDirectory::Commit() {
  FLATQUANT_CHECK(!partial_.empty());
  SyncFolder(partial_);
  if (Examine(final_, replaceable_) == State::kReplaceable) {
    Replace();
    return;
  }
  if (::rename(partial_.c_str(), final_.c_str()) != 0) {
    Fail("file.rename", final_, "cannot put the finished directory in place",
         "choose a name that is not a mount point, in a folder that can be written");
  }
  partial_.clear();
  SyncFolder(final_.parent_path());
}

void AtomicDirectory::Replace() {
  // The old folder is locked as well, so that no other writer takes it for a
  // dead one's while it lies aside.
  const Lock old_lock = LockFolder(final_);
  fs::path old = partial_;
  if (!packed_internal::Exchange(partial_, final_)) {
    for (int n = 0; fs::exists(old); ++n) old = HiddenName(final_, n, kReplaced);
    packed_internal::TwoRenames(partial_, final_, old);
  }
  partial_.clear();
  SyncFolder(final_.parent_path());  // the new name is durable before the old data goes
  RemoveQuietly(old);
  if (old_lock.descriptor >= 0) ::close(old_lock.descriptor);
}

}  // namespace flatquant
