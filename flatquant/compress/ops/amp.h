#pragma once

#include <c10/core/ScalarType.h>

namespace flatquant::compress {

// What the operands of training's matrix products are rounded to; the rest of a step is float.
// 8 significant bits with float's range, or 11 bits between 6e-8 and 65504, which gradients
// must be brought into (calibration.cc). kOff: as they are.
enum class Amp { kOff, kBF16, kF16 };

// The type of operands whose own type is `own`.
inline at::ScalarType OperandType(Amp amp, at::ScalarType own) {
  switch (amp) {
    case Amp::kBF16:
      return at::kBFloat16;
    case Amp::kF16:
      return at::kHalf;
    case Amp::kOff:
      break;
  }
  return own;
}

inline bool IsSixteenBits(at::ScalarType type) {
  return type == at::kBFloat16 || type == at::kHalf;
}

}  // namespace flatquant::compress
