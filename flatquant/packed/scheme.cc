#include "flatquant/packed/scheme.h"

#include <cctype>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

[[noreturn]] void Bad(std::string_view text) {
  throw Error("scheme.bad", "scheme '" + std::string(text) + "'", "cannot be read",
              "write w<bits>a<bits>, then kv<bits> or k<bits>v<bits> if the cache is quantized, "
              "with bits 2 to 8 or 16: w4a4kv4, w4a16, w8a8, w4a8k8v4");
}

// Reads the text from front to back; upper and lower case mean the same.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  bool done() const { return at_ == text_.size(); }

  bool Take(char letter) {
    if (done() || std::tolower(static_cast<unsigned char>(text_[at_])) != letter) return false;
    ++at_;
    return true;
  }

  // One of 2..8 or 16, written without leading zeros.
  int Bits() {
    size_t end = at_;
    while (end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
    const std::string_view digits = text_.substr(at_, end - at_);
    at_ = end;
    if (digits == "16") return 16;
    if (digits.size() == 1 && digits[0] >= '2' && digits[0] <= '8') return digits[0] - '0';
    Bad(text_);
  }

  void Expect(char letter) {
    if (!Take(letter)) Bad(text_);
  }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Scheme Scheme::Parse(std::string_view text) {
  Cursor cursor(text);
  Scheme scheme;
  cursor.Expect('w');
  scheme.weight_bits = cursor.Bits();
  cursor.Expect('a');
  scheme.act_bits = cursor.Bits();
  scheme.k_bits = scheme.v_bits = 16;
  if (cursor.done()) return scheme;
  cursor.Expect('k');
  if (cursor.Take('v')) {
    scheme.k_bits = scheme.v_bits = cursor.Bits();
  } else {
    scheme.k_bits = cursor.Bits();
    cursor.Expect('v');
    scheme.v_bits = cursor.Bits();
  }
  if (!cursor.done()) Bad(text);
  return scheme;
}

std::string Scheme::Name() const {
  std::string name = "w" + std::to_string(weight_bits) + "a" + std::to_string(act_bits);
  if (k_bits != v_bits) {
    name += "k" + std::to_string(k_bits) + "v" + std::to_string(v_bits);
  } else if (k_bits != 16) {
    name += "kv" + std::to_string(k_bits);
  }
  return name;
}

}  // namespace flatquant
