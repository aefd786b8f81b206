// Only the CUDA side multiplies through torch; the CPU kernels bring their own products.
#ifdef USE_CUDA

#include "matrices.h"

#include <array>

namespace customlstm {

namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

template <size_t n>
Tensor call(const char* op, const char* overload, std::array<StableIValue, n>& stack) {
  const AOTITorchError error = torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION);
  if (error != TORCH_SUCCESS) {
    fail(op, " failed; torch has written the reason to stderr (most often the device has no memory left)");
  }
  return to<Tensor>(stack[0]);
}

Tensor view(const Tensor& tensor, std::array<int64_t, 2> size, std::array<int64_t, 2> stride, int64_t offset) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(tensor.get(), 2, size.data(), stride.data(), offset, &handle));
  return Tensor(handle);
}

}  // namespace

Tensor matrix(const Tensor& tensor, int64_t rows, int64_t width, int64_t first, int64_t columns) {
  check(tensor.is_contiguous() && tensor.numel() == rows * width && first + columns <= width, "a matrix [", rows, ", ",
        width, "] was wanted of a tensor of shape ", shape_of(tensor));
  return view(tensor, {rows, columns}, {width, 1}, first);
}

Tensor transposed(const Tensor& matrix) {
  return view(matrix, {matrix.size(1), matrix.size(0)}, {matrix.stride(1), matrix.stride(0)}, 0);
}

void multiply(const Tensor& a, const Tensor& b, Tensor& out) {
  if (out.numel() == 0) return;
  if (a.size(1) == 0) {
    torch::stable::zero_(out);
  } else if (out.scalar_type() == a.scalar_type()) {
    std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
    call("aten::mm", "out", stack);
  } else {
    std::array<StableIValue, 4> stack{from(a), from(b), from(out.scalar_type()), from(out)};
    call("aten::mm", "dtype_out", stack);
  }
}

Tensor product(const Tensor& a, const Tensor& b) {
  // Not in 16 bits at once: cuBLAS may then add partial sums of that precision, as torch allows it by default.
  Tensor out = torch::stable::new_empty(a, {a.size(0), b.size(1)}, accumulation_type(storage_type(a)));
  multiply(a, b, out);
  return out.scalar_type() == a.scalar_type() ? out : torch::stable::to(out, a.scalar_type());
}

Tensor column_sums(const Tensor& matrix, ScalarType dtype) {
  const std::array<int64_t, 1> rows{0};
  return torch::stable::sum(matrix, torch::headeronly::IntHeaderOnlyArrayRef(rows.data(), 1), false, dtype);
}

Tensor concatenated(const std::vector<Tensor>& matrices) {
  std::array<StableIValue, 2> stack{from(matrices), from(int64_t{0})};
  return call("aten::cat", "", stack);
}

}  // namespace customlstm

#endif  // USE_CUDA
