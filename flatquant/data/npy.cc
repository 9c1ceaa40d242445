#include "flatquant/data/npy.h"

#include <charconv>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"

namespace flatquant {
namespace {

[[noreturn]] void Fail(const std::filesystem::path& path, std::string_view what,
                       std::string_view hint = "save it with numpy.save as integers") {
  throw Error("data.bad_npy", path.string(), what, hint);
}

// What the header says.
struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// Parses the header's Python dictionary, which the format restricts to the keys
// 'descr', 'fortran_order' and 'shape': {'descr': '<i4', 'fortran_order': False,
// 'shape': (128, 2048), }
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::filesystem::path& path)
      : rest_(text), path_(path) {}

  Header Parse() {
    std::optional<std::string> descr;
    std::optional<bool> fortran;
    std::optional<std::vector<int64_t>> shape;
    Expect('{');
    while (!Accept('}')) {
      const std::string key = String();
      Expect(':');
      if (key == "descr" && !descr) {
        // A list here would be a record type, which String() refuses.
        descr = String();
      } else if (key == "fortran_order" && !fortran) {
        fortran = Boolean();
      } else if (key == "shape" && !shape) {
        shape = Tuple();
      } else {
        Fail(path_, "has an unexpected or repeated header key '" + key.substr(0, 40) + "'");
      }
      if (!Accept(',')) {
        Expect('}');
        break;
      }
    }
    SkipSpace();
    if (!rest_.empty()) Fail(path_, "has bytes after its header's dictionary");
    if (!descr || !fortran || !shape)
      Fail(path_, "has a header without descr, fortran_order or shape");
    return {*descr, *fortran, *shape};
  }

 private:
  void SkipSpace() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n')) rest_.remove_prefix(1);
  }

  bool Accept(char c) {
    SkipSpace();
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void Expect(char c) {
    if (!Accept(c)) Fail(path_, std::string("has a malformed header: '") + c + "' expected");
  }

  std::string String() {
    SkipSpace();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) {
      Fail(path_, "has a malformed header: a string expected (record types are not supported)");
    }
    const size_t end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) Fail(path_, "has a malformed header: endless string");
    const std::string text(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return text;
  }

  bool Boolean() {
    SkipSpace();
    for (const auto& [word, value] : {std::pair{"True", true}, std::pair{"False", false}}) {
      if (!rest_.starts_with(word)) continue;
      rest_.remove_prefix(std::string_view(word).size());
      return value;
    }
    Fail(path_, "has a malformed header: True or False expected");
  }

  std::vector<int64_t> Tuple() {
    std::vector<int64_t> values;
    Expect('(');
    while (!Accept(')')) {
      SkipSpace();
      int64_t value = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), value);
      if (error != std::errc() || value < 0) Fail(path_, "has a malformed shape");
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      values.push_back(value);
      if (values.size() > 32) Fail(path_, "has too many dimensions");  // NumPy's own limit
      if (!Accept(',')) {
        Expect(')');
        break;
      }
    }
    return values;
  }

  std::string_view rest_;
  const std::filesystem::path& path_;
};

struct IntegerType {
  bool is_signed = true;
  bool big_endian = false;
  size_t size = 0;
};

IntegerType ParseType(const std::string& descr, const std::filesystem::path& path) {
  const bool known = descr.size() == 3 &&
                     std::string_view("<>|").find(descr[0]) != std::string::npos &&
                     (descr[1] == 'i' || descr[1] == 'u') &&
                     std::string_view("1248").find(descr[2]) != std::string::npos &&
                     (descr[0] != '|' || descr[2] == '1');
  if (!known) {
    Fail(path, "holds elements of type '" + descr.substr(0, 40) + "', not integers",
         "convert it with .astype('int32')");
  }
  return {descr[1] == 'i', descr[0] == '>', static_cast<size_t>(descr[2] - '0')};
}

// The element at `data`, sign-extended; a u8 beyond int64 comes out negative,
// which no caller accepts either.
int64_t ReadInteger(const std::byte* data, const IntegerType& type) {
  uint64_t bits = 0;
  for (size_t i = 0; i < type.size; ++i) {
    const size_t shift = 8 * (type.big_endian ? type.size - 1 - i : i);
    bits |= static_cast<uint64_t>(data[i]) << shift;
  }
  const size_t unused = 64 - 8 * type.size;
  if (!type.is_signed) return static_cast<int64_t>(bits);
  return static_cast<int64_t>(bits << unused) >> unused;
}

}  // namespace

NpyIds ReadNpyIds(const std::filesystem::path& path) {
  const MappedFile file = MappedFile::Open(path);
  const std::span<const std::byte> bytes = file.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("PK\x03\x04")) {
    Fail(path, "is a .npz archive", "unzip it and name one of its .npy files");
  }
  if (!text.starts_with("\x93NUMPY") || text.size() < 8) Fail(path, "is not a .npy file");
  const int version = static_cast<unsigned char>(text[6]);
  if (version < 1 || version > 3)
    Fail(path, "has an unknown .npy version " + std::to_string(version));
  const size_t length_bytes = version == 1 ? 2 : 4;
  const size_t header_start = 8 + length_bytes;
  if (bytes.size() < header_start) Fail(path, "is truncated in its header");
  const auto header_bytes = static_cast<size_t>(ReadInteger(
      bytes.data() + 8, {.is_signed = false, .big_endian = false, .size = length_bytes}));
  if (header_bytes > bytes.size() - header_start) Fail(path, "is truncated in its header");

  const Header header = HeaderParser(text.substr(header_start, header_bytes), path).Parse();
  const IntegerType type = ParseType(header.descr, path);
  if (header.shape.empty() || header.shape.size() > 2) {
    Fail(path, "has " + std::to_string(header.shape.size()) + " dimensions",
         "token ids are one row, or one window per row");
  }
  if (header.fortran_order && header.shape.size() == 2) {
    Fail(path, "is stored in Fortran order", "save numpy.ascontiguousarray of it");
  }
  const auto count = CheckedElements(header.shape);
  const auto size = count ? CheckedMul(*count, type.size) : std::nullopt;
  const size_t available = bytes.size() - header_start - header_bytes;
  if (!size || *size != available) {
    Fail(path, "has " + std::to_string(available) + " bytes of data, not what its shape needs",
         "get the file again");
  }

  NpyIds result;
  result.two_dimensional = header.shape.size() == 2;
  result.rows = result.two_dimensional ? header.shape[0] : 1;
  result.cols = header.shape.back();
  result.ids.resize(*count);
  const std::byte* data = bytes.data() + header_start + header_bytes;
  for (size_t i = 0; i < result.ids.size(); ++i) {
    const int64_t value = ReadInteger(data + i * type.size, type);
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      throw Error("data.id_range", path.string(),
                  "element " + std::to_string(i) + " is " + std::to_string(value) +
                      ", which is no token id",
                  "check that the file holds token ids");
    }
    result.ids[i] = static_cast<int32_t>(value);
  }
  return result;
}

}  // namespace flatquant
