// A checked call of the layer on a GPU: its device, stream and arithmetic, what all kernels are told of it, the tensors
// that it works on, and the plan of its recurrence. What the call computes is in cuda_layer.cpp and cuda_gradients.cpp.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <vector>

#include "../cuda/kernels.h"
#include "layer_arguments.h"

namespace customlstm {

class CudaCall : public LayerCall {
  // Above all that needs it, and until everything is enqueued.
  const torch::stable::accelerator::DeviceGuard guard_;

 public:
  explicit CudaCall(const LayerArguments& a);

  // What forward and backward have in common.
  template <class Params>
  void fill(Params& p) const {
    p.size = sizes_;
    p.sequences = sequences_;
    for (int64_t d = 0; d < size.directions; ++d) {
      const WeightPointers w = weights(d);
      p.weights[d] = {w.w_hh, w.b_ih, w.b_hh, w.w_hr, {}, {}};
      std::copy(std::begin(w.unit_parameters), std::end(w.unit_parameters), p.weights[d].unit_parameters);
      for (int place = 0; place < kNormPlaces; ++place) {
        p.weights[d].norms[place] = {w.norms[place].gain, w.norms[place].bias};
      }
    }
    p.cell = {cell.kind(), cell.params(type), cell.tables(type), cell.table_count(),
              static_cast<int32_t>(unit_parameters()), written_, arguments.cell.c_str(), {}};
    for (int place = 0; place < kNormPlaces; ++place) p.cell.norms[place] = cell.norm(place);
    p.c_0 = c_0.data();
  }

  // The plan for so many of the call's steps. Throws where CUSTOMLSTM_CUDA_VARIANT asks for what does not fit.
  cuda::Tiling tiling(int64_t steps, bool backward) const;
  bool is_normalised() const { return cell.kind() == CellKind::kNormalised; }

  // The input as a matrix [rows, L]. A transposed view (batch_first) is copied here: the kernels read their part of
  // the gates row by row in the order of time, so one copy is needed either way, and the input is the smallest.
  Tensor input_rows() const;
  // The same with zeros beyond each length: a NaN there would reach the weight gradients as 0 * NaN.
  Tensor input_rows_without_padding() const;
  // W_ih of all directions, one below the other: [D * G * H, L].
  Tensor input_weights() const;
  // A tensor of the rows of the call, each of sizes `last`; zero beyond a length, otherwise the kernel's to fill.
  Tensor rows_tensor(std::initializer_list<int64_t> last, ScalarType dtype) const;
  // A contiguous tensor with the values of `from`, or zeros.
  Tensor copy_or_zeros(const std::optional<Tensor>& from, const std::vector<int64_t>& shape) const;
  Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) const;
  // Memory in which `bytes` follow the address that align() gives.
  Tensor workspace(int64_t bytes) const;
  static void* align(const Tensor& workspace);

  const cuda::Sizes& sizes() const { return sizes_; }
  const cuda::Sequences& on_device() const { return sequences_; }
  // Whether every sequence has all steps, as far as the host knows.
  bool one_length() const { return one_length_; }
  std::vector<int64_t> h_shape() const { return {size.directions, size.batch, size.state_size}; }
  std::vector<int64_t> c_shape() const { return {size.directions, size.batch, cell.states() * size.hidden_size}; }
  int64_t gates_width() const { return cell.gates() * hidden_width(); }

  const int device;
  const cuda::MathKind math;
  void* const stream;
  const int64_t input_bytes, saved_bytes;   // of an element

 private:
  void put_on_device();
  void zero_padding(Tensor& tensor, int64_t row_bytes) const;
  const cuda::WrittenKernels* written_kernels() const;

  const bool one_length_;
  const cuda::WrittenKernels* const written_;   // null for a cell that is always there
  const cuda::Sizes sizes_;
  cuda::Sequences sequences_ = {};
  std::optional<Tensor> integers_;   // what sequences_ points to
};

}  // namespace customlstm
