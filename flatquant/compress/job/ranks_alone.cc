#include "flatquant/base/error.h"
#include "flatquant/compress/job/ranks.h"

// Stands in for ranks_mpi.cc in builds without MPI.
namespace flatquant {

Ranks::Ranks() {
  if (!compress::StartedByMpi()) return;
  throw Error("mpi.not_built", "mpirun", "this build cannot share its work with other processes",
              "install libopenmpi-dev and build with -DFLATQUANT_MPI=ON, or start one process");
}

Ranks::~Ranks() = default;

void Ranks::Barrier() {}

}  // namespace flatquant
