#include "flatquant/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

[[noreturn]] void Fail(std::string_view name, const std::filesystem::path& path,
                       std::string_view action, std::string_view hint) {
  throw Error(name, path.string(), std::string(action) + ": " + std::strerror(errno), hint);
}

// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

// Opens a regular file for reading and gives its size.
Descriptor OpenForReading(const std::filesystem::path& path, size_t* size) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) Fail("file.open", path, "cannot open", "check the path and its permissions");
  struct stat status;
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw Error("file.open", path.string(), "is not a regular file", "name a file");
  }
  *size = static_cast<size_t>(status.st_size);
  return Descriptor(descriptor);
}

// The maps that are alive, by their first address.
struct LiveMaps {
  std::mutex mutex;
  std::map<uintptr_t, size_t> sizes;
};

LiveMaps& Maps() {
  static LiveMaps* maps = new LiveMaps;  // outlives every static MappedFile
  return *maps;
}

}  // namespace

void MappedFile::ReleasePages(const std::byte* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = begin + bytes;
  LiveMaps& maps = Maps();
  const std::lock_guard lock(maps.mutex);
  auto found = maps.sizes.upper_bound(begin);
  if (found == maps.sizes.begin()) return;
  --found;
  if (end > found->first + found->second) return;
  // Pages that the range shares with its neighbours stay.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = end / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

MappedFile MappedFile::Open(const std::filesystem::path& path) {
  MappedFile file;
  file.path_ = path;
  const Descriptor descriptor = OpenForReading(path, &file.size_);
  if (file.size_ == 0) return file;  // mmap refuses an empty range
  void* memory = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, descriptor.get(), 0);
  if (memory == MAP_FAILED) {
    file.size_ = 0;
    Fail("file.map", path, "cannot map into memory", "check the memory limits");
  }
  file.data_ = static_cast<const std::byte*>(memory);
  LiveMaps& maps = Maps();
  const std::lock_guard lock(maps.mutex);
  maps.sizes.emplace(reinterpret_cast<uintptr_t>(memory), file.size_);
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  LiveMaps& maps = Maps();
  const std::lock_guard lock(maps.mutex);  // the address may be another map's at once
  maps.sizes.erase(reinterpret_cast<uintptr_t>(data_));
  ::munmap(const_cast<std::byte*>(data_), size_);
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  temporary_ = path_;
  temporary_ += "." + std::to_string(::getpid()) + ".tmp";
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ < 0) Fail("file.create", temporary_, "cannot create", "check the folder");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::Write(const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, next, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) Fail("file.write", path_, "cannot write", "free some space and try again");
    next += written;
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::Commit() {
  FLATQUANT_CHECK(descriptor_ >= 0);
  if (::fsync(descriptor_) != 0) {
    Fail("file.write", path_, "cannot flush to disk", "free some space and try again");
  }
  ::close(std::exchange(descriptor_, -1));
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(temporary_.c_str());
    errno = reason;
    Fail("file.rename", path_, "cannot put the finished file in place", "check the folder");
  }
  SyncFolder(path_.has_parent_path() ? path_.parent_path() : ".");
}

std::string ReadFile(const std::filesystem::path& path, size_t limit) {
  size_t size = 0;
  const Descriptor descriptor = OpenForReading(path, &size);
  if (size > limit) {
    throw Error("file.too_large", path.string(),
                "has " + std::to_string(size) + " bytes, more than the " + std::to_string(limit) +
                    " allowed here",
                "check that it is the right file");
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(descriptor.get(), text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) Fail("file.read", path, "cannot read", "check the disk");
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

void SyncFolder(const std::filesystem::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());  // some file systems cannot; harmless
}

}  // namespace flatquant
