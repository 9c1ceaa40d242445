#pragma once

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {

// What quantizing one site of a block, flattened as given and rounded to nearest, does to
// the block's output: the Kullback-Leibler divergence KL(p || q), mean over tokens, of
//   p = softmax(y / rms(y)),  q = softmax(z / rms(z))
// over the channels, y the original block's output and z the block's with this site
// quantized. The output, not the site's own: what a site may lose depends on how much it
// adds to the stream. Divided by its root mean square, as the norm does that reads it, so
// that one bound serves all blocks. In nats.
// base: the block's diagonals; what it flattens is not looked at. task.stream must be there.
double SiteDivergence(const BlockTask& task, const BlockParameters& base, Site site,
                      const SiteFlattening& flattening);

}  // namespace flatquant::compress
