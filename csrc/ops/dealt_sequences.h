// The sequences of a call dealt to the groups of a Plan, in the arrays that the CPU kernels read.
#pragma once

#include <vector>

#include "../cpu/kernels.h"
#include "sequences.h"

namespace customlstm {

// Owns the arrays that a Geometry points to; lives as long as the kernel runs.
class DealtSequences {
 public:
  DealtSequences(const Sequences& sequences, const Tensor& input, const Plan& plan);

  // Points g's arrays here.
  void fill(Geometry& g) const;

  // Zeroes the rows beyond a sequence's length of an array [T, B, row_bytes]; the kernels leave them alone.
  void zero_padding(void* data, size_t row_bytes) const;

 private:
  const Sequences& sequences_;
  int64_t column_stride_, feature_stride_;
  std::vector<int64_t> lengths_, step_row_, step_input_, columns_, group_begin_;
};

}  // namespace customlstm
