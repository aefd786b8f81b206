#ifdef USE_CUDA

#include "cuda_norm.h"

#include "../cuda/norm_layout.h"
#include "matrices.h"

namespace customlstm {

void project_input_into(const LayerCall& call, const Tensor& input, const Tensor& gates) {
  cuda::NormLayout layout = {};
  for (int place = 0; place < kNormPlaces; ++place) layout.norms[place] = call.cell.norm(place);
  const int64_t hidden = call.size.hidden_size, values = call.saved_values();
  for (int64_t d = 0; d < call.size.directions; ++d) {
    const int64_t first = (d * values + layout.input_product()) * hidden;
    Tensor out = matrix(gates, call.size.rows, values * call.hidden_width(), first, call.cell.gates() * hidden);
    multiply(input, transposed(call.arguments.weights[d * call.per_direction]), out);
  }
}

Tensor norm_sums(const LayerCall& call, const std::vector<int64_t>& needs) {
  bool wanted = false;
  for (size_t n = 0; n < call.arguments.weights.size() && call.cell.kind() == CellKind::kNormalised; ++n) {
    const int64_t k = static_cast<int64_t>(n) % call.per_direction;
    wanted = wanted || (needs[3 + n] != 0 && range_in_norm_sums(call, 0, k).has_value());
  }
  const LayerSizes& size = call.size;
  const std::vector<int64_t> shape = {size.batch, size.directions, cuda::kNormSlots, size.hidden_size};
  return torch::stable::new_zeros(call.arguments.input, wanted ? shape : std::vector<int64_t>{0}, call.saved_type());
}

std::optional<SumRange> range_in_norm_sums(const LayerCall& call, int64_t direction, int64_t k) {
  if (call.cell.kind() != CellKind::kNormalised) return std::nullopt;
  const int64_t hidden = call.size.hidden_size, begin = direction * cuda::kNormSlots;
  const auto slots = [&](int64_t slot, int64_t count) { return SumRange{(begin + slot) * hidden, count * hidden}; };
  for (const int64_t bias : call.added_to_gates()) {
    if (k == bias) return slots(cuda::kSlotBias, 4);
  }
  if (call.cell.norm(kNormInput) && k == call.norm_index(kNormInput)) return slots(cuda::kSlotInputGain, 4);
  if (call.cell.norm(kNormRecurrent) && k == call.norm_index(kNormRecurrent)) return slots(cuda::kSlotRecurrentGain, 4);
  if (call.cell.norm(kNormCell) && k == call.norm_index(kNormCell)) return slots(cuda::kSlotCellGain, 1);
  if (call.cell.norm(kNormCell) && k == call.norm_index(kNormCell) + 1) return slots(cuda::kSlotCellBias, 1);
  return std::nullopt;
}

}  // namespace customlstm

#endif  // USE_CUDA
