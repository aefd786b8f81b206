#include "team.h"

#ifdef _OPENMP
#include <omp.h>
#endif
#include <sched.h>

#include <new>

namespace customlstm {

namespace {

// About 15 us: long enough for the others of a team that has its cores to itself, since who gives way while another
// program waits is away for milliseconds; short enough for a team of more threads than cores, where all wait for one
// that is not running. docs/performance.md has the times for 50 to 4,000.
constexpr int kSpins = 1000;

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int Team::size() const { return size_; }

void Team::barrier() {
  if (size_ == 1) return;
  const unsigned generation = generation_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    waiting_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; generation_.load(std::memory_order_acquire) == generation; ++spin) {
    if (spin < kSpins) {
      pause_briefly();
    } else {
      sched_yield();
    }
  }
}

int usable_cpus(int unknown) {
#ifdef _OPENMP
  (void)unknown;
  return omp_get_num_procs();
#else
  return unknown;
#endif
}

void run_team(int threads, void (*body)(void* context, Team& team, int rank), void* context) {
#ifdef _OPENMP
  if (threads > 1 && !omp_in_parallel()) {
    // The team is made by the thread that enters first, of the size that was granted, not of the size asked for:
    // a barrier that waits for a thread which was never started would wait for ever.
    alignas(Team) unsigned char storage[sizeof(Team)];
    Team* team = nullptr;
#pragma omp parallel num_threads(threads) shared(team, storage)
    {
#pragma omp single
      team = new (storage) Team(omp_get_num_threads());
      body(context, *team, omp_get_thread_num());
    }
    team->~Team();
    return;
  }
#endif
  (void)threads;
  Team alone(1);
  body(context, alone, 0);
}

}  // namespace customlstm
