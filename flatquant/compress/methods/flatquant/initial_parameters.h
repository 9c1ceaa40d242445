#pragma once

#include "flatquant/base/rng.h"
#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {

// What FlatQuant's training starts from: transforms of random orthogonal matrices
// (InvertibleMatrix::SvdCayley), diagonals d = w_max^(1-a) / x_max^a per channel (a = 0.3), clip
// logits 4 (a factor of 0.982). Only what the scheme's grids can profit from is created
// (AddSiteMatrices).
BlockParameters InitialParameters(const BlockTask& task, Rng& rng);

}  // namespace flatquant::compress
