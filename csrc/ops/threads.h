// How many threads a CPU kernel may use.
#pragma once

namespace customlstm {

// torch's number, but not more than the CPUs that the system lets this process use: threads that meet at every step of
// a sequence must all run at once. CUSTOMLSTM_OVERSUBSCRIBE=1 lifts that limit, for tests on small machines.
int available_threads();

}  // namespace customlstm
