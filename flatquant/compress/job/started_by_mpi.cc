#include <cstdlib>

#include "flatquant/compress/job/ranks.h"

namespace flatquant::compress {

bool StartedByMpi() {
  // Open MPI, PMIx (srun --mpi=pmix), PMI (MPICH, srun --mpi=pmi2).
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

}  // namespace flatquant::compress
