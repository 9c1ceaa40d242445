#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace flatquant {

// A read-only memory map of a whole file. Movable; the map lives as long as the
// object. Errors: file.open, file.map.
class MappedFile {
 public:
  static MappedFile Open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  // Gives the memory behind [data, data + bytes) back to the system, if it belongs to
  // a MappedFile: the pages are read again from the file when they are next touched.
  // Other memory is left alone, so that the owner of a view need not be known.
  static void ReleasePages(const std::byte* data, size_t bytes);
  const std::filesystem::path& path() const { return path_; }

 private:
  MappedFile() = default;
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes a file so that its final name appears only when every byte is on disk:
// temporary name in the same folder, fsync, rename, fsync of the folder. A
// writer that is destroyed before Commit removes its temporary file.
// Errors: file.create, file.write (disk full included), file.rename.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void Write(const void* data, size_t bytes);
  void Write(std::string_view text) { Write(text.data(), text.size()); }
  void Commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

// The whole file as a string. Errors: file.open, file.read, and file.too_large
// beyond limit bytes.
std::string ReadFile(const std::filesystem::path& path, size_t limit = size_t{1} << 30);

// Makes a folder's entries durable (fsync on the folder).
void SyncFolder(const std::filesystem::path& folder);

}  // namespace flatquant
