#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "flatquant/checkpoint/pth_value.h"

// All that a pickle may say. What is not in these two lists is refused by name.
namespace flatquant {

// The instructions, by their codes in Python's pickletools.
enum class PickleOpcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersid = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kEmptyList = ']',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

struct AllowedGlobal {
  std::string_view module;
  std::string_view name;
  PthValue::Global global;
};

inline constexpr std::array<AllowedGlobal, 13> kAllowedGlobals = {{
    {"collections", "OrderedDict", {PthGlobal::kOrderedDict, DType::kU8}},
    {"torch._utils", "_rebuild_tensor_v2", {PthGlobal::kRebuildTensor, DType::kU8}},
    {"torch._utils", "_rebuild_parameter", {PthGlobal::kRebuildParameter, DType::kU8}},
    {"torch", "FloatStorage", {PthGlobal::kStorageType, DType::kF32}},
    {"torch", "DoubleStorage", {PthGlobal::kStorageType, DType::kF64}},
    {"torch", "HalfStorage", {PthGlobal::kStorageType, DType::kF16}},
    {"torch", "BFloat16Storage", {PthGlobal::kStorageType, DType::kBF16}},
    {"torch", "LongStorage", {PthGlobal::kStorageType, DType::kI64}},
    {"torch", "IntStorage", {PthGlobal::kStorageType, DType::kI32}},
    {"torch", "ShortStorage", {PthGlobal::kStorageType, DType::kI16}},
    {"torch", "CharStorage", {PthGlobal::kStorageType, DType::kI8}},
    {"torch", "ByteStorage", {PthGlobal::kStorageType, DType::kU8}},
    {"torch", "BoolStorage", {PthGlobal::kStorageType, DType::kBool}},
}};

}  // namespace flatquant
