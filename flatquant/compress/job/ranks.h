#pragma once

#include <string>

namespace flatquant {

// This process among those that mpirun or srun started together; one of one where
// nothing did. They share files, not messages: all that MPI is needed for is to know
// who is who, and to wait for each other.
//
// Where one dies, mpirun ends the others. An object that goes while an exception
// travels leaves MPI open on purpose, as closing it would wait for the others.
class Ranks {
 public:
  // Joins the others, once in a process. Errors: mpi.not_built (started by an MPI
  // launcher, but built without MPI).
  Ranks();
  ~Ranks();
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  int rank() const { return rank_; }  // from 0
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }  // among those of this host
  bool is_first() const { return rank_ == 0; }

  // Waits, asleep, until all are here.
  void Barrier();

 private:
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  bool joined_ = false;
};

namespace compress {

// Whether an MPI launcher started this process, by the variables that it sets.
bool StartedByMpi();

}  // namespace compress
}  // namespace flatquant
