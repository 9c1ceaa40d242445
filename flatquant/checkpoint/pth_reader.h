#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "flatquant/base/tensor.h"
#include "flatquant/checkpoint/pth_value.h"

namespace flatquant {

// A file written by torch.save (PyTorch 1.6 or later: a zip archive holding a
// pickle and one entry per storage). Pickle is a program; this reader runs only
// the part of it that builds dicts, lists, tuples, numbers, strings and tensors,
// and refuses everything else by name. No code from the file or named by the
// file is ever executed.
//
// Named errors:
//   pth.not_zip                 no zip archive (nor anything like one) in the file
//   pth.bad_zip                 the archive's records contradict each other
//   pth.entry_out_of_bounds     an entry lies outside the file
//   pth.entry_overlap           two entries share bytes
//   pth.duplicate_entry         two entries of one name
//   pth.encrypted               an encrypted entry
//   pth.unsupported_compression an entry neither stored nor deflated
//   pth.bad_deflate             an entry that does not inflate to its size
//   pth.crc_mismatch            an entry whose checksum is wrong
//   pth.missing_entry           no data.pkl, or a storage without an entry
//   pth.byte_order              written on a big-endian machine
//   pth.too_large               more memory, values or names than allowed
//   pth.truncated_pickle        the pickle ends in the middle
//   pth.bad_protocol            not pickle protocol 2 to 5
//   pth.forbidden_opcode        an instruction outside the allowed ones
//   pth.forbidden_global        a function or class outside the allowed ones
//   pth.bad_call                an allowed one with arguments it does not take
//   pth.bad_pickle              an instruction that does not fit its operands
//   pth.duplicate_key           a dict with one key twice
//   pth.cycle                   a container that contains itself
//   pth.too_deep                containers nested deeper than kMaxPthDepth
//   pth.bad_storage             an entry whose size is not what the pickle claims
//   pth.bad_tensor              sizes, strides or offset outside the storage
//   pth.duplicate_name          two tensors that flatten to one name
struct PthLimits {
  // Bytes that inflated entries and tensors that are not contiguous in the file
  // may take together. Contiguous tensors of stored entries stay in the mapped
  // file and count nothing.
  uint64_t memory_bytes = uint64_t{1} << 30;
};

class PthFile {
 public:
  // Errors: those above and file.open, file.map.
  static PthFile Open(const std::filesystem::path& path, const PthLimits& limits = {});

  // Valid as long as this object.
  const PthValue& root() const { return *tree_.root; }

  // Every tensor of nested dicts, lists and tuples, by the keys and indices that
  // lead to it: {0: {"self_attn": [t]}} gives "0.self_attn.0". Leaves that are
  // not tensors are left out. Tensors are dense and row-major, whatever their
  // strides were, and keep their memory alive.
  std::map<std::string, Tensor, std::less<>> Tensors() const;

 private:
  std::string where_;
  PthTree tree_;
};

}  // namespace flatquant
