#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "../cpu/team.h"

namespace customlstm {

int available_threads() {
  const int wanted = static_cast<int>(torch::stable::get_num_threads());
  if (wanted <= 1) return 1;
  // Read once: another thread may write the environment while this one reads it.
  static const bool oversubscribe = [] {
    const char* const value = std::getenv("CUSTOMLSTM_OVERSUBSCRIBE");
    return value != nullptr && std::strcmp(value, "1") == 0;
  }();
  return oversubscribe ? wanted : std::min(wanted, usable_cpus(wanted));
}

}  // namespace customlstm
