#pragma once

#include <ATen/core/Tensor.h>

namespace flatquant::compress {

// (I + K)^-1 for skew matrices K = -K^T: [batch, n, n], float or double, differentiable.
// Such a matrix always exists: the singular values of I + K are at least 1.
//
// Where a library would bring its error codes to the host, which no CUDA graph allows
// (float on a GPU), InverseByIteration takes over.
at::Tensor InverseOfIdentityPlus(const at::Tensor& skew);

// The same by matrix products alone, not differentiable. With P = I - K^2, symmetric with
// eigenvalues in [1, 1 + |K|^2], (I + K)^-1 = (I - K) P^-1. P^-1 comes from Newton's iteration
// X <- X (2 I - P X) (Schulz, 1933), which squares the error I - P X each time. Exact to a
// few roundings for |K| up to 10, which is a turn of 168 degrees by the Cayley map.
at::Tensor InverseByIteration(const at::Tensor& skew);

}  // namespace flatquant::compress
