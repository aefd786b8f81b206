#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../cpu/team.h"

namespace customlstm {

namespace {

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace

int available_threads() {
  const int wanted = torch_threads();
  if (wanted <= 1) return 1;
  // Read once: another thread may write the environment while this one reads it.
  static const bool oversubscribe = [] {
    const char* const value = std::getenv("CUSTOMLSTM_OVERSUBSCRIBE");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return oversubscribe ? wanted : std::min(wanted, usable_cpus(wanted));
}

Plan plan_call(const Geometry& g, bool backward) {
  const Plan plan = plan_threads(g, torch_threads(), backward);
  if (plan.threads == 1) return plan;
  const int available = available_threads();
  // What is planned for more threads, and uses no more than these, is what would be planned for these.
  return plan.threads <= available ? plan : plan_threads(g, available, backward);
}

}  // namespace customlstm
