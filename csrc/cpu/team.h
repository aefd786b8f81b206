// The threads that work on one call, and the barrier between their phases.
#pragma once

#include <atomic>

namespace customlstm {

// Defined in team.cpp and never inline: the kernels are compiled for newer CPUs, and a copy of an inline function
// made there could be the one that the linker keeps.
class Team {
 public:
  explicit Team(int size) : size_(size) {}
  int size() const;
  // Returns when all `size` threads have called it; what each wrote before is visible to all after.
  void barrier();

 private:
  const int size_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<unsigned> generation_{0};
};

// How many CPUs the calling thread may run on, asked anew; `unknown` without OpenMP. Where OMP_PROC_BIND or OMP_PLACES
// tie it to one of those that its team has, OpenMP says how many there were when the process began.
int usable_cpus(int unknown);

// Runs body(context, team, rank) on `threads` threads, fewer if the runtime grants fewer. An OpenMP region: it shares
// torch's own thread pool, since two pools on one machine fight for the cores.
void run_team(int threads, void (*body)(void* context, Team& team, int rank), void* context);

}  // namespace customlstm
