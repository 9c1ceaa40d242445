#include <mpi.h>

#include <chrono>
#include <exception>
#include <thread>

#include "flatquant/compress/job/ranks.h"

// Errors need no checks here: MPI's default handler ends the job, saying why.
namespace flatquant {

Ranks::Ranks() {
  if (!compress::StartedByMpi()) return;
  MPI_Init(nullptr, nullptr);
  joined_ = true;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  MPI_Comm host;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host);
  MPI_Comm_rank(host, &local_rank_);
  MPI_Comm_free(&host);
}

Ranks::~Ranks() {
  if (joined_ && std::uncaught_exceptions() == 0) MPI_Finalize();
}

void Ranks::Barrier() {
  if (!joined_) return;
  // MPI_Barrier would spin; the others may need hours, and this core.
  MPI_Request request;
  MPI_Ibarrier(MPI_COMM_WORLD, &request);
  int done = 0;
  while (true) {
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace flatquant
