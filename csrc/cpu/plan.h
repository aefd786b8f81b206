// How one layer call is divided among threads and how it reads its weights: pure functions of sizes, tested as a table.
#pragma once

#include "kernels.h"

namespace customlstm {

// How forward reads a gate matrix with rows of `depth` values for `rows` rows of the other factor. The order of sums
// depends on the sizes of the layer and its batch only, never on `rows` or the number of steps: feeding a sequence in
// pieces must not change bits.
WeightAccess plan_access(const Geometry& g, int64_t depth, int64_t rows);

// The plan of a whole call for at most `available` threads. It changes no bit of the result, only the time.
Plan plan_threads(const Geometry& g, int available, bool backward);

// The cycles that a plan takes by the model in plan.cpp, as far as it depends on the plan.
double planned_cycles(const Geometry& g, const Plan& plan, bool backward);

}  // namespace customlstm
