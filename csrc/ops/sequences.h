// Where the rows of a call lie and how long its sequences are: padded or packed, all of one length or not.
#pragma once

#include <optional>
#include <vector>

#include "../cpu/kernels.h"
#include "checks.h"

namespace customlstm {

// Owns the arrays that a Geometry points to; lives as long as the kernel runs.
class Sequences {
 public:
  // input: [T, B, L] of any strides, or with batch_sizes (int64 [T], CPU) packed rows [N, L] of `batch` sequences.
  // lengths: int64 [B]. resets: bool [T, B]. Throws std::runtime_error for anything that does not fit together.
  Sequences(const Tensor& input, int64_t batch, const std::optional<Tensor>& batch_sizes,
            const std::optional<Tensor>& lengths, const std::optional<Tensor>& resets);

  // Deals the sequences to plan.groups groups, and points g's arrays here.
  void fill(Geometry& g, const Plan& plan);

  // Zeroes the rows beyond a sequence's length of an array [T, B, row_bytes]; the kernels leave them alone.
  void zero_padding(void* data, size_t row_bytes) const;

  int64_t steps() const { return steps_; }
  int64_t rows() const { return rows_; }
  int64_t valid_rows() const { return valid_rows_; }
  bool ragged() const { return valid_rows_ < rows_; }
  // Leading sizes of the output: {T, B} or {N}.
  const std::vector<int64_t>& leading() const { return leading_; }

 private:
  void read_lengths(const Tensor& lengths);
  void read_batch_sizes(const Tensor& batch_sizes);

  int64_t steps_ = 0, batch_ = 0, rows_ = 0, valid_rows_ = 0;
  int64_t column_stride_ = 0, feature_stride_ = 0;
  std::vector<int64_t> leading_, step_row_, step_input_, lengths_, columns_, group_begin_;
  Contiguous resets_;
};

}  // namespace customlstm
