// Matrix views of tensors and their products on the GPU, by cuBLAS through torch's dispatcher: on the current stream,
// with torch's workspace, switches and profiler.
#pragma once

#include <vector>

#include "checks.h"

namespace customlstm {

// Rows and columns of a contiguous tensor's memory: `columns` from column `first` on of a matrix [rows, width].
Tensor matrix(const Tensor& tensor, int64_t rows, int64_t width, int64_t first, int64_t columns);
inline Tensor matrix(const Tensor& tensor, int64_t rows, int64_t width) {
  return matrix(tensor, rows, width, 0, width);
}
// A view of a matrix.
Tensor transposed(const Tensor& matrix);

// out = a b, summed in the accumulation type. out has the dtype of a and b, or is float32 where they have 16 bits; it
// may have any strides (row-major ones are written in place).
void multiply(const Tensor& a, const Tensor& b, Tensor& out);
// The same as a new tensor of the dtype of a and b, rounded once.
Tensor product(const Tensor& a, const Tensor& b);

// The sums of the columns of a matrix in `dtype`, always in the same order.
Tensor column_sums(const Tensor& matrix, ScalarType dtype);

// One below the other.
Tensor concatenated(const std::vector<Tensor>& matrices);

}  // namespace customlstm
