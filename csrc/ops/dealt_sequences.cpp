#include "dealt_sequences.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace customlstm {

DealtSequences::DealtSequences(const Sequences& sequences, const Tensor& input, const Plan& plan)
    : sequences_(sequences),
      column_stride_(input.stride(input.dim() - 2)),
      feature_stride_(input.stride(input.dim() - 1)),
      lengths_(sequences.lengths()),
      step_row_(sequences.step_row()),
      step_input_(sequences.steps()) {
  const int64_t steps = sequences.steps(), batch = sequences.batch();
  if (lengths_.empty()) lengths_.assign(batch, steps);
  if (step_row_.empty()) {
    step_row_.resize(steps);
    for (int64_t t = 0; t < steps; ++t) step_row_[t] = t * batch;
  }
  const bool packed = input.dim() == 2;
  const int64_t step_stride = packed ? 0 : input.stride(0);
  for (int64_t t = 0; t < steps; ++t) step_input_[t] = packed ? step_row_[t] * column_stride_ : t * step_stride;

  std::vector<int64_t> longest_first(batch);
  std::iota(longest_first.begin(), longest_first.end(), int64_t{0});
  const bool uneven = std::adjacent_find(lengths_.begin(), lengths_.end(), std::not_equal_to<>()) != lengths_.end();
  if (uneven) {
    std::stable_sort(longest_first.begin(), longest_first.end(),
                     [this](int64_t a, int64_t b) { return lengths_[a] > lengths_[b]; });
  }
  group_begin_.assign(1, 0);
  for (int64_t group = 0; group < plan.groups; ++group) {
    if (uneven) {   // like cards, so that no group gets all the long ones
      for (int64_t i = group; i < batch; i += plan.groups) columns_.push_back(longest_first[i]);
    } else {        // neighbours stay together
      const int64_t end = batch * (group + 1) / plan.groups;
      for (int64_t i = batch * group / plan.groups; i < end; ++i) columns_.push_back(i);
    }
    group_begin_.push_back(static_cast<int64_t>(columns_.size()));
  }
}

void DealtSequences::fill(Geometry& g) const {
  g.step_row = step_row_.data();
  g.step_input = step_input_.data();
  g.input_column_stride = column_stride_;
  g.input_feature_stride = feature_stride_;
  g.lengths = lengths_.data();
  g.columns = columns_.data();
  g.group_begin = group_begin_.data();
  g.resets = sequences_.resets();
  g.valid_rows = sequences_.valid_rows();
}

void DealtSequences::zero_padding(void* data, size_t row_bytes) const {
  if (!sequences_.padded() || row_bytes == 0) return;   // an empty tensor may have no address at all
  const int64_t steps = sequences_.steps(), batch = sequences_.batch();
  for (int64_t t = 0; t < steps; ++t) {
    for (int64_t b = 0; b < batch; ++b) {
      if (lengths_[b] <= t) std::memset(static_cast<char*>(data) + (step_row_[t] + b) * row_bytes, 0, row_bytes);
    }
  }
}

}  // namespace customlstm
