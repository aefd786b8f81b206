// How many threads a CPU kernel may use, and the plan for them.
#pragma once

#include "../cpu/plan.h"

namespace customlstm {

// torch's number, but not more than the CPUs that the calling thread may run on: threads that meet at every step of a
// sequence must all run at once. A container's quota of CPU time is not seen; torch.set_num_threads helps there.
// CUSTOMLSTM_OVERSUBSCRIBE=1 lifts the limit, for tests on small machines.
int available_threads();

// The plan of a call on that many threads. How many CPUs there are is a system call, and small calls need no answer.
Plan plan_call(const Geometry& g, bool backward);

}  // namespace customlstm
