// Runs a CPU kernel on the team that its plan asks for.
#pragma once

#include "../cpu/kernels.h"

namespace customlstm {

template <class Params>
void run_kernel(void (*kernel)(const Params&, Team&, int), const Params& params) {
  struct Launch {
    void (*kernel)(const Params&, Team&, int);
    const Params* params;
    static void body(void* context, Team& team, int rank) {
      const Launch& launch = *static_cast<const Launch*>(context);
      launch.kernel(*launch.params, team, rank);
    }
  };
  Launch launch = {kernel, &params};
  run_team(params.plan.threads, &Launch::body, &launch);
}

}  // namespace customlstm
