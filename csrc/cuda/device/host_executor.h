// Runs kernels on the CPU: every thread of every block is a fiber, and a scheduler with a seeded random generator
// decides at each barrier, collective or flag who goes on. For tests; nothing of it is in the package.
//
// Checked, each with the array, the index, the block, the thread and the line in the kernel:
//
//   bounds and alignment    of every access, and reads of shared memory that was never written
//   races                   two accesses to one element by two threads, one of them a write, which no barrier and no
//                           release and acquire order; found from the order that there is, not from the schedule
//   stale reads             read or read_vector (and copy_async of 4 or 8 bytes) of a global element that another
//                           block has written in this launch: a cache may still hold the old value
//   copy_async              memory that is used before copy_wait, and copies that nobody waits for
//   deadlocks               all threads wait or spin in pause() and nothing is written any more
//   barriers, collectives   which not all threads reach, or which they reach at different lines
//   clusters                a write_remote to a block that may not run yet, or not any more
//
// A launch that is not cooperative has a random number of its blocks (or clusters) resident at one time, in random
// order. Memory is sequentially consistent: what a weaker memory would show is a race here. Not modelled: the order of
// lanes within an access, bank conflicts, limits of registers, time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../launcher.h"

namespace customlstm {
namespace device {
namespace host {

using Body = void (*)(const void* params);

// xorshift64*; small, and the same on every machine.
struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state((seed + 1) * 0x9e3779b97f4a7c15ull) {
    if (state == 0) state = 1;
    for (int i = 0; i < 4; ++i) next();
  }
  uint64_t next() {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
  }
  uint32_t below(uint32_t n) { return uint32_t((next() >> 32) * n >> 32); }
};

// Of a kernel that is started by its handle, the handle is a pointer to one of these, which stays where it is.
struct KernelInfo {
  const char* name;
  int most_threads;
  Body body;
};

template <class Kernel>
KernelInfo info_of() {
  using Params = typename Kernel::Params;
  return {Kernel::kName, Kernel::kThreads, [](const void* p) { Kernel::run(*static_cast<const Params*>(p)); }};
}

// Throws std::runtime_error with the first error found. One launch at a time runs in a process; others wait.
void run(const KernelInfo& kernel, const cuda::Launch& launch, const void* params, uint64_t seed, Random& random);

}  // namespace host
}  // namespace device

namespace cuda {

// A Launcher as launcher.h wants it. Each launch goes on with the random numbers of the one before.
class HostLauncher {
 public:
  explicit HostLauncher(uint64_t seed) : seed_(seed), random_(seed) {}

  template <class Kernel>
  void launch(const Launch& launch, const typename Kernel::Params& params) {
    using Params = typename Kernel::Params;
    static_assert(std::is_trivially_copyable<Params>::value && sizeof(Params) <= 4096, "plain data of at most 4 KB");
    device::host::run(device::host::info_of<Kernel>(), launch, &params, seed_, random_);
  }

  template <class Params>
  void launch_loaded(const void* handle, const char* name, int most_threads, const Launch& launch,
                     const Params& params) {
    static_assert(std::is_trivially_copyable<Params>::value && sizeof(Params) <= 4096, "plain data of at most 4 KB");
    const auto* const kernel = static_cast<const device::host::KernelInfo*>(handle);
    device::host::run({name, most_threads, kernel->body}, launch, &params, seed_, random_);
  }

 private:
  uint64_t seed_;
  device::host::Random random_;
};

}  // namespace cuda
}  // namespace customlstm
