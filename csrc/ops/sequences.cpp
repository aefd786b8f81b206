#include "sequences.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace customlstm {

namespace {

// Rows of a call. Far beyond any memory with the features they hold, and far from overflow when multiplied by these.
constexpr int64_t kMost = int64_t{1} << 36;

}  // namespace

Sequences::Sequences(const Tensor& input, int64_t batch, const std::optional<Tensor>& batch_sizes,
                     const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets)
    : batch_(batch) {
  check(!(batch_sizes && lengths), "lengths and batch_sizes exclude each other: packed data knows its lengths");
  if (batch_sizes) {
    check(input.dim() == 2, "packed input has shape ", shape_of(input), ", expected [rows, features]");
    column_stride_ = input.stride(0);
    feature_stride_ = input.stride(1);
    rows_ = input.size(0);
    leading_ = {rows_};
    read_batch_sizes(*batch_sizes);
  } else {
    check(input.dim() == 3, "input has shape ", shape_of(input), ", expected [steps, batch, features]");
    steps_ = input.size(0);
    // Before anything is allocated for so many: a view can claim any size without having it.
    check(steps_ < kMost && batch_ < kMost && (batch_ == 0 || steps_ < kMost / batch_), "input has shape ",
          shape_of(input), ", more than ", kMost, " rows");
    rows_ = steps_ * batch_;
    leading_ = {steps_, batch_};
    column_stride_ = input.stride(1);
    feature_stride_ = input.stride(2);
    lengths_.assign(batch_, steps_);
    valid_rows_ = rows_;
    step_row_.resize(steps_);
    step_input_.resize(steps_);
    for (int64_t t = 0; t < steps_; ++t) {
      step_row_[t] = t * batch_;
      step_input_[t] = t * input.stride(0);
    }
    if (lengths) read_lengths(*lengths);
  }
  if (resets) {
    check(resets->is_cpu(), "resets is not on the CPU, where input is; move it there");
    check(resets->scalar_type() == ScalarType::Bool, "resets is ", name_of(resets->scalar_type()), ", expected bool");
    check_shape("resets", *resets, {steps_, batch_});
    resets_ = Contiguous(*resets);
  }
}

void Sequences::read_lengths(const Tensor& lengths) {
  check(lengths.is_cpu() && lengths.scalar_type() == ScalarType::Long, "lengths must be an int64 tensor on the CPU");
  check_shape("lengths", lengths, {batch_});
  const Contiguous data(lengths);
  const int64_t* from = static_cast<const int64_t*>(data.data());
  valid_rows_ = 0;
  for (int64_t b = 0; b < batch_; ++b) {
    check(from[b] >= 0 && from[b] <= steps_, "lengths[", b, "] is ", from[b], ", expected 0 to ", steps_,
          ", the number of steps of input");
    lengths_[b] = from[b];
    valid_rows_ += from[b];
  }
}

void Sequences::read_batch_sizes(const Tensor& batch_sizes) {
  check(batch_sizes.is_cpu() && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.dim() == 1,
        "batch_sizes must be a one-dimensional int64 tensor on the CPU");
  const Contiguous data(batch_sizes);
  const int64_t* sizes = static_cast<const int64_t*>(data.data());
  steps_ = batch_sizes.size(0);
  lengths_.assign(batch_, 0);
  step_row_.resize(steps_);
  step_input_.resize(steps_);
  int64_t previous = batch_;
  for (int64_t t = 0; t < steps_; ++t) {
    check(sizes[t] >= 1 && sizes[t] <= previous, "batch_sizes[", t, "] is ", sizes[t], ", expected 1 to ", previous,
          ": sizes never grow, and start at the batch of the initial state");
    previous = sizes[t];
    step_row_[t] = valid_rows_;
    step_input_[t] = valid_rows_ * column_stride_;
    valid_rows_ += sizes[t];
    for (int64_t b = 0; b < sizes[t]; ++b) lengths_[b] = t + 1;
  }
  check(valid_rows_ == rows_, "batch_sizes add up to ", valid_rows_, ", but packed input has ", rows_, " rows");
}

void Sequences::zero_padding(void* data, size_t row_bytes) const {
  if (!ragged()) return;
  for (int64_t t = 0; t < steps_; ++t) {
    for (int64_t b = 0; b < batch_; ++b) {
      if (lengths_[b] <= t) std::memset(static_cast<char*>(data) + (step_row_[t] + b) * row_bytes, 0, row_bytes);
    }
  }
}

void Sequences::fill(Geometry& g, const Plan& plan) {
  std::vector<int64_t> longest_first(batch_);
  std::iota(longest_first.begin(), longest_first.end(), int64_t{0});
  const bool uneven = std::adjacent_find(lengths_.begin(), lengths_.end(), std::not_equal_to<>()) != lengths_.end();
  if (uneven) {
    std::stable_sort(longest_first.begin(), longest_first.end(),
                     [this](int64_t a, int64_t b) { return lengths_[a] > lengths_[b]; });
  }
  columns_.clear();
  group_begin_.assign(1, 0);
  for (int64_t group = 0; group < plan.groups; ++group) {
    if (uneven) {   // like cards, so that no group gets all the long ones
      for (int64_t i = group; i < batch_; i += plan.groups) columns_.push_back(longest_first[i]);
    } else {        // neighbours stay together
      const int64_t end = batch_ * (group + 1) / plan.groups;
      for (int64_t i = batch_ * group / plan.groups; i < end; ++i) columns_.push_back(i);
    }
    group_begin_.push_back(static_cast<int64_t>(columns_.size()));
  }
  g.step_row = step_row_.data();
  g.step_input = step_input_.data();
  g.input_column_stride = column_stride_;
  g.input_feature_stride = feature_stride_;
  g.lengths = lengths_.data();
  g.columns = columns_.data();
  g.group_begin = group_begin_.data();
  g.resets = static_cast<const uint8_t*>(resets_.data());
  g.valid_rows = valid_rows_;
}

}  // namespace customlstm
