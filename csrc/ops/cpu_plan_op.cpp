// The thread plan of the CPU kernels as ops: so that it is tested, and explained, for any number of threads.
//
//   cpu_plan(int[] sizes, int threads, bool backward) -> (int[], float)
//
//   sizes    steps, batch, input_size, hidden_size, output_size, directions, gates
//   threads  how many there are
//   results  threads, groups, share_units; access of w_ih and of w_hh in forward, then in backward, by their numbers
//            in WeightAccess
//            the model's cycles
//
//   cpu_threads() -> int   how many a call made now would have
//
// customlstm/thread_plan.py is its face.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../cpu/plan.h"
#include "checks.h"
#include "threads.h"

namespace customlstm {

namespace {

constexpr size_t kSizes = 7;
// Far beyond any memory, and small enough that nothing the plan computes in integers overflows.
constexpr int64_t kMostSize = int64_t(1) << 40, kMostRows = int64_t(1) << 60, kMostThreads = 1 << 20;

std::tuple<std::vector<int64_t>, double> cpu_plan(std::vector<int64_t> sizes, int64_t threads, bool backward) {
  check(sizes.size() == kSizes, "sizes has ", sizes.size(), " numbers, expected ", kSizes);
  const char* const names[kSizes] = {"steps",       "batch",      "input_size", "hidden_size",
                                     "output_size", "directions", "gates"};
  for (size_t k = 0; k < kSizes; ++k) {
    const int64_t least = k < 3 ? 0 : 1, most = k == 5 ? 2 : k == 6 ? kMaxGates : kMostSize;
    check(sizes[k] >= least && sizes[k] <= most, "sizes: ", names[k], " is ", sizes[k], ", expected ", least, " to ",
          most);
  }
  check(sizes[0] == 0 || sizes[1] <= kMostRows / sizes[0], "sizes: no thread plan for ", sizes[0], " steps of ",
        sizes[1], " sequences");
  check(threads >= 1 && threads <= kMostThreads, "threads is ", threads, ", expected 1 to ", kMostThreads);
  Geometry g = {};
  g.steps = sizes[0];
  g.batch = sizes[1];
  g.input_size = sizes[2];
  g.hidden_size = sizes[3];
  g.output_size = sizes[4];
  g.directions = sizes[5];
  g.gates = sizes[6];
  const Plan plan = plan_threads(g, static_cast<int>(threads), backward);
  return {{plan.threads, plan.groups, plan.share_units, static_cast<int64_t>(plan.w_ih),
           static_cast<int64_t>(plan.w_hh), static_cast<int64_t>(plan.backward_w_ih),
           static_cast<int64_t>(plan.backward_w_hh)},
          planned_cycles(g, plan, backward)};
}

int64_t cpu_threads() { return available_threads(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(customlstm, m) {
  m.def("cpu_plan(int[] sizes, int threads, bool backward) -> (int[], float)");
  m.def("cpu_threads() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(customlstm, CompositeExplicitAutograd, m) {
  m.impl("cpu_plan", TORCH_BOX(&cpu_plan));
  m.impl("cpu_threads", TORCH_BOX(&cpu_threads));
}

}  // namespace customlstm
