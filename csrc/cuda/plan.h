// The launch plan: which recurrence runs a layer, with which tiling, or why one does not fit. A pure function of
// sizes, arithmetic and device limits, so that it is tested as a table on a machine without a GPU.
#pragma once

#include <string>

#include "tiling.h"

namespace customlstm {
namespace cuda {

struct DeviceLimits {
  int32_t capability;             // 80, 90, 100, ...
  int32_t multiprocessors;
  int32_t shared_bytes;           // dynamic shared memory a block can opt in to
  int64_t l2_bytes;
  int32_t cluster_blocks;         // largest cluster, 1 where there are none
  int32_t clusters;               // clusters of that size resident at once
  bool cooperative;               // cooperative launch supported
};

struct Request {
  int64_t steps, batch, hidden_size, state_size, directions;
  bool projection;
  bool backward;
  bool ragged;
  MathKind math;
  int32_t gates = 4;   // of the cell
  bool normalised = false;   // layer norm
};

struct LaunchPlan {
  Tiling tiling;                       // of the chosen variant
  std::string why_not[kVariants];      // empty for a variant that fits; else a sentence for people
  double predicted_us;                 // the model's time for all steps
};

// Chooses the fastest variant that fits by the model in docs/cuda.md; `forced` (a Variant, or -1) overrides the choice,
// and where that one does not fit the result has tiling.warps == 0. step always fits.
LaunchPlan plan_layer(const Request& request, const DeviceLimits& limits, int32_t forced);

// -1 for null or "", else the variant of that name; throws std::runtime_error for any other text.
int32_t variant_named(const char* name);

}  // namespace cuda
}  // namespace customlstm
