#include "threads.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>

#include "../cpu/team.h"

namespace customlstm {

int available_threads() {
  const int wanted = static_cast<int>(torch::stable::get_num_threads());
  if (wanted <= 1) return 1;
  const char* const oversubscribe = std::getenv("CUSTOMLSTM_OVERSUBSCRIBE");
  if (oversubscribe != nullptr && *oversubscribe == '1') return wanted;
  return std::min(wanted, usable_cpus(wanted));
}

}  // namespace customlstm
