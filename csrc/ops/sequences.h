// Where the rows of a call lie and how long its sequences are: padded or packed, all of one length or not.
#pragma once

#include <optional>
#include <vector>

#include "checks.h"

namespace customlstm {

class Sequences {
 public:
  // input: [T, B, L] of any strides, or with batch_sizes (int64 [T], CPU) packed rows [N, L] of `batch` sequences.
  // lengths: int64 [B], on the CPU, or where input is; its values are checked only on the CPU, as reading them
  // elsewhere would wait for the device. resets: bool [T, B]. Throws std::runtime_error for anything that does not
  // fit together.
  Sequences(const Tensor& input, int64_t batch, const std::optional<Tensor>& batch_sizes,
            const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets);

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  int64_t rows() const { return rows_; }
  // Rows within their sequence's length, as far as lengths are known.
  int64_t valid_rows() const { return valid_rows_; }
  // Whether a tensor with rows may have some beyond a sequence's length.
  bool padded() const { return valid_rows_ < rows_ || device_lengths_.data() != nullptr; }
  // Leading sizes of the output: {T, B} or {N}.
  const std::vector<int64_t>& leading() const { return leading_; }

  // [B], or empty where every sequence has all steps or the lengths are on the device.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  // [B] on the device, or null.
  const void* device_lengths() const { return device_lengths_.data(); }
  // The first row of each step, or empty where it is t * batch: padded data, and packed data of one length.
  const std::vector<int64_t>& step_row() const { return step_row_; }
  const uint8_t* resets() const { return static_cast<const uint8_t*>(resets_.data()); }

 private:
  void read_lengths(const Tensor& lengths, const Tensor& input);
  void read_batch_sizes(const Tensor& batch_sizes);

  int64_t steps_ = 0, batch_ = 0, rows_ = 0, valid_rows_ = 0;
  std::vector<int64_t> leading_, lengths_, step_row_;
  Contiguous device_lengths_, resets_;
};

}  // namespace customlstm
