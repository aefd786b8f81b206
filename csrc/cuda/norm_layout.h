// Layer norm (customlstm.Cell(layer_norm=...)): in which order its parameters and the values kept for backward stand,
// and how its blocks are cut. Plain numbers, on which the torch side, the plan and the kernels agree.
#pragma once

#include "tiling.h"

namespace customlstm {
namespace cuda {

// Values of a unit among the parameters of a direction, and among the sums of their gradients, four for the four
// gates. The bias is all that is added to the products: b_ih and b_hh, and that of either layer norm.
enum NormSlot : int32_t {
  kSlotBias = 0,
  kSlotInputGain = 4,
  kSlotRecurrentGain = 8,
  kSlotCellGain = 12,
  kSlotCellBias = 13,
};
constexpr int32_t kNormSlots = 14;

// What forward keeps of a unit, as the CPU kernels do: of each product that is normalised its 4 values as they were,
// those of the input first. Before them the 4 that the cell saves, unless both products are kept: then backward finds
// them again, since memory costs more than the arithmetic.
struct NormLayout {
  bool norms[kNormPlaces];

  CUSTOMLSTM_HOST_DEVICE bool keeps_gates() const { return !(norms[kNormInput] && norms[kNormRecurrent]); }
  CUSTOMLSTM_HOST_DEVICE int32_t product(NormPlace place) const {
    return (keeps_gates() ? 4 : 0) + (place == kNormRecurrent && norms[kNormInput] ? 4 : 0);
  }
  CUSTOMLSTM_HOST_DEVICE int32_t values() const {
    return (keeps_gates() ? 4 : 0) + (norms[kNormInput] ? 4 : 0) + (norms[kNormRecurrent] ? 4 : 0);
  }
  // Where W_ih x stands in these values before the recurrence: where it is kept, else where the cell then saves.
  CUSTOMLSTM_HOST_DEVICE int32_t input_product() const { return norms[kNormInput] ? product(kNormInput) : 0; }
};

// Threads of a block that takes a whole row.
constexpr int32_t kRowThreads = 256;
CUSTOMLSTM_HOST_DEVICE int32_t row_threads(int64_t hidden_size) {
  return hidden_size < kRowThreads ? int32_t(round_up(hidden_size, 32)) : kRowThreads;
}

}  // namespace cuda
}  // namespace customlstm
