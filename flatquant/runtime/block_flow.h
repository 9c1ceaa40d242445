#pragma once

#include "flatquant/model/network.h"

namespace flatquant {

// A decoder block, the same on every device. `ops` holds the residual stream [rows,
// hidden] and the memory between the steps:
//
//   EnterNormed(site)       what feeds the site is the norm of the stream; transform, quantize
//   Enter(site)             what feeds it is what the steps before left: attention's output
//                           at attn_out, SwiGLU of gate and up at mlp_out
//   ApplyLinears(site)      the site's linears, each into memory of its own
//   AddLinear(site)         stream += the site's one linear
//   StoreHeads()            norms, rotation and transforms of Q and K; K and V to the caches
//   Attend()                attention of the rows' Q over their caches
template <typename Ops>
void RunBlock(Ops& ops) {
  ops.EnterNormed(Site::kAttnIn);
  ops.ApplyLinears(Site::kAttnIn);
  ops.StoreHeads();
  ops.Attend();
  ops.Enter(Site::kAttnOut);
  ops.AddLinear(Site::kAttnOut);

  ops.EnterNormed(Site::kMlpIn);
  ops.ApplyLinears(Site::kMlpIn);
  ops.Enter(Site::kMlpOut);
  ops.AddLinear(Site::kMlpOut);
}

}  // namespace flatquant
