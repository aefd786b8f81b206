#include "sequences.h"

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
    valid_rows_ = rows_;
    if (lengths) read_lengths(*lengths, input);
  }
  if (resets) {
    check(same_device(*resets, input), "resets is on ", device_of(*resets), ", but input is on ", device_of(input),
          "; move it there");
    check(resets->scalar_type() == ScalarType::Bool, "resets is ", name_of(resets->scalar_type()), ", expected bool");
    check_shape("resets", *resets, {steps_, batch_});
    resets_ = Contiguous(*resets);
  }
}

void Sequences::read_lengths(const Tensor& lengths, const Tensor& input) {
  check(lengths.scalar_type() == ScalarType::Long && (lengths.is_cpu() || same_device(lengths, input)),
        "lengths is ", name_of(lengths.scalar_type()), " on ", device_of(lengths), ", expected int64 on the CPU",
        input.is_cpu() ? "" : " or on " + device_of(input));
  check_shape("lengths", lengths, {batch_});
  const Contiguous data(lengths);
  if (!lengths.is_cpu()) {
    device_lengths_ = data;
    return;
  }
  const int64_t* from = static_cast<const int64_t*>(data.data());
  valid_rows_ = 0;
  for (int64_t b = 0; b < batch_; ++b) {
    check(from[b] >= 0 && from[b] <= steps_, "lengths[", b, "] is ", from[b], ", expected 0 to ", steps_,
          ", the number of steps of input");
    valid_rows_ += from[b];
  }
  if (valid_rows_ < rows_) lengths_.assign(from, from + batch_);
}

void Sequences::read_batch_sizes(const Tensor& batch_sizes) {
  check(batch_sizes.is_cpu() && batch_sizes.scalar_type() == ScalarType::Long && batch_sizes.dim() == 1,
        "batch_sizes must be a one-dimensional int64 tensor on the CPU");
  const Contiguous data(batch_sizes);
  const int64_t* sizes = static_cast<const int64_t*>(data.data());
  steps_ = batch_sizes.size(0);
  lengths_.resize(batch_);
  step_row_.resize(steps_);
  int64_t previous = batch_;
  for (int64_t t = 0; t < steps_; ++t) {
    check(sizes[t] >= 1 && sizes[t] <= previous, "batch_sizes[", t, "] is ", sizes[t], ", expected 1 to ", previous,
          ": sizes never grow, and start at the batch of the initial state");
    while (previous > sizes[t]) lengths_[--previous] = t;
    step_row_[t] = valid_rows_;
    valid_rows_ += sizes[t];
  }
  while (previous > 0) lengths_[--previous] = steps_;
  check(valid_rows_ == rows_, "batch_sizes add up to ", valid_rows_, ", but packed input has ", rows_, " rows");
  if (rows_ == steps_ * batch_) {   // then packed is as padded
    lengths_.clear();
    step_row_.clear();
  }
}

}  // namespace customlstm
