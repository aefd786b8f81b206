// Layer norm around the recurrence on the GPU: where the products of the input go, and the gradients of the parameters.
#pragma once

#include <optional>

#include "layer_arguments.h"

namespace customlstm {

// W_ih x of every row and direction into the tensor `gates` that forward saves, where norm_layout.h says: no second
// array. `input` is [rows, L].
void project_input_into(const LayerCall& call, const Tensor& input, const Tensor& gates);

// Zeros [B, D, kNormSlots, H] for the recurrence to add the gradients of biases and layer norms to, or an empty tensor
// where the cell has no layer norm or none of these gradients is needed.
Tensor norm_sums(const LayerCall& call, const std::vector<int64_t>& needs);

// Which of those sums, taken over the sequences, are the gradient of weight k of a direction; empty for a weight whose
// gradient is something else.
struct SumRange {
  int64_t first, count;
};
std::optional<SumRange> range_in_norm_sums(const LayerCall& call, int64_t direction, int64_t k);

}  // namespace customlstm
