#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "flatquant/compress/block_parameters.h"

namespace flatquant::compress {

// Where a tensor's channels are cut: channel j, whose largest magnitude is m_j, is
// split into pieces of at most T.
struct Threshold {
  double value = 0;   // T
  at::Tensor pieces;  // int64 [channels]: max(ceil(m_j / T), 1)
};

// The smallest T that cuts the channels into at most growth * channels pieces. Hence T
// follows from the distribution of the maxima: growth = 1 is the largest of them, and
// a tensor with few wide channels gets a T near the others' maxima.
// maxima: [channels], not negative. growth >= 1. top: the largest integer of the grid;
// a channel has at most as many pieces as 16 bits hold, T rises where that binds.
Threshold ChooseThreshold(const at::Tensor& maxima, double growth, int top);

// A site whose activation is cut at `act` and whose linears' weights, in LinearsOf
// order, at `weights`. A channel has a column for each pair of a piece of the
// activation and a piece of the weights, of which it has as many as the linear that
// needs most.
// Without `weights` those keep a scale per row, and only the activation is cut.
SiteFlattening MakeFlattening(int bits, const Threshold& act,
                              const std::vector<Threshold>& weights);

}  // namespace flatquant::compress
