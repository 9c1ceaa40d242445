#include "flatquant/checkpoint/safetensors_header.h"

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

using nlohmann::json;

constexpr std::string_view kDamaged = "download the file again";
constexpr std::string_view kMalformed = "the file is malformed; write it again with safetensors";

// Follows the only shape that a header may have, event by event:
//   {"__metadata__": {string: string, ...},
//    name: {"dtype": string, "shape": [n, ...], "data_offsets": [n, n]}, ...}
// No tree is built, so a hostile header costs no more memory than its bytes.
class HeaderHandler {
 public:
  using number_integer_t = json::number_integer_t;
  using number_unsigned_t = json::number_unsigned_t;
  using number_float_t = json::number_float_t;
  using string_t = json::string_t;
  using binary_t = json::binary_t;

  HeaderHandler(const std::string& where, SafetensorsLayout* out) : where_(where), out_(out) {}

  bool null() { return Unexpected("null"); }
  bool boolean(bool) { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) { return Unexpected(text); }
  bool binary(binary_t&) { return Unexpected("binary data"); }

  bool number_integer(number_integer_t value) { return Unexpected(std::to_string(value)); }

  bool number_unsigned(number_unsigned_t value) {
    if (place_ == Place::kShape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        Fail("safetensors.shape_overflow", "has the dimension " + std::to_string(value),
             kMalformed);
      }
      entry_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets && offset_count_ < 2) {
      (offset_count_++ == 0 ? entry_.begin : entry_.end) = value;
      return true;
    }
    return Unexpected(std::to_string(value));
  }

  bool string(string_t& value) {
    if (place_ == Place::kMetadata) {
      out_->metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::kDType) return Unexpected("the string " + Quoted(value));
    const auto dtype = ParseDType(value);
    if (!dtype) {
      Fail("safetensors.unknown_dtype", "has the unknown dtype " + Quoted(value),
           "convert it to F32, F16 or BF16");
    }
    entry_.dtype = *dtype;
    place_ = Place::kEntry;
    return true;
  }

  bool start_object(size_t) {
    switch (place_) {
      case Place::kBefore:
        place_ = Place::kRoot;
        return true;
      case Place::kMetadataValue:
        place_ = Place::kMetadata;
        return true;
      case Place::kEntryValue:
        place_ = Place::kEntry;
        entry_ = {key_, DType::kF32, {}, 0, 0};
        offset_count_ = 0;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() {
    if (place_ == Place::kEntry) {
      for (std::string_view field : {"dtype", "shape", "data_offsets"}) {
        if (!keys_.contains(field)) {
          Fail("safetensors.bad_entry", "lacks " + Quoted(field), kMalformed);
        }
      }
      out_->entries.push_back(std::move(entry_));
    }
    keys_.clear();
    place_ = Place::kRoot;
    return true;
  }

  bool start_array(size_t) {
    if (place_ == Place::kShapeValue) {
      place_ = Place::kShape;
    } else if (place_ == Place::kOffsetsValue) {
      place_ = Place::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    if (place_ == Place::kOffsets && offset_count_ != 2) return Unexpected("too few numbers");
    place_ = Place::kEntry;
    return true;
  }

  bool key(string_t& name) {
    const bool at_root = place_ == Place::kRoot;
    if (!(at_root ? names_ : keys_).insert(name).second) {
      throw Error("safetensors.duplicate_key", where_,
                  "the key " + Quoted(name) +
                      (at_root ? " appears twice" : " appears twice in " + Quoted(key_)),
                  kMalformed);
    }
    if (at_root) {
      place_ = name == "__metadata__" ? Place::kMetadataValue : Place::kEntryValue;
      key_ = std::move(name);
    } else if (place_ == Place::kMetadata) {
      key_ = std::move(name);
    } else if (name == "dtype") {
      place_ = Place::kDType;
    } else if (name == "shape") {
      place_ = Place::kShapeValue;
    } else if (name == "data_offsets") {
      place_ = Place::kOffsetsValue;
    } else {
      Fail("safetensors.bad_entry", "has the unknown field " + Quoted(name), kMalformed);
    }
    return true;
  }

  template <typename Exception>
  bool parse_error(size_t position, const std::string&, const Exception& exception) {
    throw Error("safetensors.header_not_json", where_, SyntaxFault(position, exception.what()).what,
                kDamaged);
  }

 private:
  // Where the next event is. The ...Value places wait for a key's value.
  enum class Place {
    kBefore,
    kRoot,
    kMetadataValue,
    kMetadata,
    kEntryValue,
    kEntry,
    kDType,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
  };

  [[noreturn]] void Fail(std::string_view name, const std::string& what, std::string_view hint) {
    throw Error(name, where_, "tensor " + Quoted(key_) + " " + what, hint);
  }

  // A value of the wrong kind for its place. Always throws; returns for the
  // callers' sake.
  bool Unexpected(const std::string& found) {
    switch (place_) {
      case Place::kMetadataValue:
        throw Error("safetensors.bad_metadata", where_, "__metadata__ is not an object",
                    kMalformed);
      case Place::kMetadata:
        throw Error("safetensors.bad_metadata", where_,
                    "__metadata__ " + Quoted(key_) + " is not a string", kMalformed);
      case Place::kShape:
        Fail("safetensors.bad_shape", "has " + found + " as a dimension", kMalformed);
      case Place::kOffsets:
        Fail("safetensors.bad_offsets", "has " + found + " in data_offsets", kMalformed);
      default:
        Fail("safetensors.bad_entry", "has " + found + " in an unexpected place", kMalformed);
    }
  }

  const std::string& where_;
  SafetensorsLayout* out_;
  Place place_ = Place::kBefore;
  std::string key_;  // the current tensor, or the current key of the metadata
  SafetensorsLayout::Entry entry_{};
  int offset_count_ = 0;
  std::set<std::string, std::less<>> names_;  // keys of the header
  std::set<std::string, std::less<>> keys_;   // keys of the open entry or metadata
};

}  // namespace

SafetensorsLayout ParseSafetensorsHeader(std::string_view header, const std::string& where) {
  if (!header.starts_with('{')) {
    throw Error("safetensors.header_not_object", where, "the header does not start with '{'",
                "check that it is a safetensors file");
  }
  if (const auto fault = CheckJsonText(header)) {
    throw Error(fault->kind == JsonFault::Kind::kNotUtf8 ? "safetensors.header_not_utf8"
                                                         : "safetensors.header_not_json",
                where, "the header has " + fault->what, kDamaged);
  }
  SafetensorsLayout layout;
  HeaderHandler handler(where, &layout);
  json::sax_parse(header.begin(), header.end(), &handler);
  return layout;
}

}  // namespace flatquant
