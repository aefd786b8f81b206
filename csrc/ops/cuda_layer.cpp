// The recurrence on the GPU and what it takes and leaves. Forward, the projection of the input comes before it: by
// cuBLAS, one product for all steps, or for as many as fit. Backward, cuda_gradients.cpp comes after it.
#ifdef USE_CUDA

#include "cuda_layer.h"

#include <algorithm>

#include "../cuda/kernels.h"
#include "cuda_call.h"
#include "cuda_gradients.h"
#include "cuda_norm.h"
#include "matrices.h"

namespace customlstm {

namespace {

// Inference computes the input projection of at most so many bytes at a time.
#ifndef CUSTOMLSTM_CHUNK_BYTES   // a test cuts small calls
#define CUSTOMLSTM_CHUNK_BYTES (int64_t{256} << 20)
#endif

template <class Pointer>
Pointer* advance(Pointer* pointer, int64_t elements, int64_t element_bytes) {
  if (!pointer) return nullptr;
  return reinterpret_cast<Pointer*>(reinterpret_cast<uintptr_t>(pointer) + elements * element_bytes);
}

// Steps that inference computes at once, so that their part of the gates stays small. Only where the state that goes
// from one piece to the next loses nothing: 16-bit types would round the cell state there.
int64_t steps_at_once(const CudaCall& call, int64_t save) {
  const LayerSizes& size = call.size;
  const bool can_cut = save < 2 && size.directions == 1 && call.one_length() && call.input_bytes == call.saved_bytes;
  if (!can_cut) return size.steps;
  const int64_t step_bytes = size.batch * call.gates_width() * call.saved_bytes;
  return std::min(size.steps, std::max<int64_t>(1, CUSTOMLSTM_CHUNK_BYTES / step_bytes));
}

void enqueue(const CudaCall& call, cuda::ForwardParams& p) {
  const cuda::Tiling tiling = call.tiling(p.size.steps, false);
  const Tensor workspace = call.workspace(cuda::forward_workspace(call.math, p, tiling));
  p.workspace = CudaCall::align(workspace);
  cuda::forward(call.math, p, tiling, call.stream);
}

// All steps; `gates` is the saved tensor or empty.
void run_at_once(const CudaCall& call, cuda::ForwardParams p, Tensor& gates) {
  const int64_t width = call.gates_width();
  // In training the projection of the input is written where the kernel then puts what it saves: no second array. A
  // thread reads all gates of a unit before it writes there. (With more or fewer values a unit the rows of the two
  // would not be the same; layer norm finds it among others.)
  const bool in_place = gates.numel() > 0 && call.saved_values() == call.cell.gates();
  if (gates.numel() > 0 && !in_place && call.is_normalised()) {
    project_input_into(call, call.input_rows(), gates);
    p.gates_x = gates.const_data_ptr();
    enqueue(call, p);
    return;
  }
  const Tensor x_part = in_place ? gates : call.empty({call.size.rows, width}, call.saved_type());
  Tensor out = matrix(x_part, call.size.rows, width);
  multiply(call.input_rows(), transposed(call.input_weights()), out);
  p.gates_x = x_part.const_data_ptr();
  enqueue(call, p);
}

// `steps` steps at a time, in one direction, of sequences of one length.
void run_in_pieces(const CudaCall& call, const cuda::ForwardParams& whole, int64_t steps) {
  const LayerSizes& size = call.size;
  const int64_t width = call.gates_width();
  const Tensor weights = transposed(call.input_weights());
  Tensor x = call.input_rows();
  const Tensor x_part = call.empty({steps * size.batch, width}, call.saved_type());
  // The state goes to and fro between the results and these, so that the last piece writes the results.
  const Tensor h = call.empty(call.h_shape(), call.input_type()), c = call.empty(call.c_shape(), call.input_type());
  const int64_t pieces = (size.steps + steps - 1) / steps;
  cuda::ForwardParams p = whole;
  for (int64_t k = 0; k < pieces; ++k) {
    const int64_t first = k * steps, count = std::min(steps, size.steps - first);
    const int64_t row = first * size.batch;
    p.size.steps = count;
    p.size.rows = count * size.batch;
    const Tensor rows = torch::stable::narrow(x, 0, row, p.size.rows);
    Tensor out = torch::stable::narrow(const_cast<Tensor&>(x_part), 0, 0, p.size.rows);
    multiply(rows, weights, out);
    p.gates_x = x_part.const_data_ptr();
    p.sequences.resets = advance(whole.sequences.resets, row, 1);
    p.sequences.zoneout_h.mask = advance(whole.sequences.zoneout_h.mask, row * size.state_size, 1);
    p.sequences.zoneout_c.mask = advance(whole.sequences.zoneout_c.mask, row * size.hidden_size, 1);
    p.output = advance(whole.output, row * size.state_size, call.input_bytes);
    p.c_all = advance(whole.c_all, row * call.cell_width(), call.saved_bytes);
    const bool to_results = (pieces - 1 - k) % 2 == 0;
    p.h_n = to_results ? whole.h_n : h.mutable_data_ptr();
    p.c_n = to_results ? whole.c_n : c.mutable_data_ptr();
    enqueue(call, p);
    p.h_0 = p.h_n;
    p.c_0 = p.c_n;
  }
}

}  // namespace

LayerResult cuda_layer_forward(const LayerArguments& a, int64_t save) {
  check_save(save);
  const CudaCall call(a);
  const LayerSizes& size = call.size;
  const ScalarType input_type = call.input_type(), saved_type = call.saved_type();
  const auto rows_if = [&](bool want, std::initializer_list<int64_t> last) {
    return want ? call.rows_tensor(last, saved_type) : call.empty({0}, saved_type);
  };
  Tensor output = call.rows_tensor({call.output_width()}, input_type);
  Tensor c_all = rows_if(save >= 1, {call.cell_width()});
  // What lies beyond a length in the gates is read by no one.
  Tensor gates = call.empty(save == 2 ? call.rows_shape({size.directions, call.saved_values(), size.hidden_size})
                                      : std::vector<int64_t>{0}, saved_type);
  Tensor hidden = rows_if(save == 2 && a.projection, {call.hidden_width()});
  if (size.rows == 0) {
    return {output, call.copy_or_zeros(a.h_0, call.h_shape()), call.copy_or_zeros(a.c_0, call.c_shape()),
            c_all,  gates, hidden};
  }
  Tensor h_n = call.empty(call.h_shape(), input_type), c_n = call.empty(call.c_shape(), input_type);

  cuda::ForwardParams p = {};
  call.fill(p);
  p.h_0 = call.h_0.data();
  p.output = output.mutable_data_ptr();
  p.h_n = h_n.mutable_data_ptr();
  p.c_n = c_n.mutable_data_ptr();
  p.c_all = save >= 1 ? c_all.mutable_data_ptr() : nullptr;
  p.gates = save == 2 ? gates.mutable_data_ptr() : nullptr;
  p.hidden = save == 2 && a.projection ? hidden.mutable_data_ptr() : nullptr;
  const int64_t steps = steps_at_once(call, save);
  if (steps == size.steps) {
    run_at_once(call, p, gates);
  } else {
    run_in_pieces(call, p, steps);
  }
  return {output, h_n, c_n, c_all, gates, hidden};
}

LayerGradients cuda_layer_backward(const LayerArguments& a, const SavedTensors& given, const GradOutputs& grads,
                                   const std::vector<int64_t>& needs) {
  const CudaCall call(a);
  const LayerSizes& size = call.size;
  call.check_needs(needs);
  const Tensor output = given.output.is_contiguous() ? given.output : torch::stable::contiguous(given.output);
  const Tensor c_all = given.c_all.is_contiguous() ? given.c_all : torch::stable::contiguous(given.c_all);
  const SavedTensors saved = {output, c_all, given.gates, given.hidden};
  call.check_saved(saved);
  call.check_grads(grads);
  if (size.rows == 0) return gradients_of_nothing(call, grads, needs);

  const ScalarType input_type = call.input_type();
  const Contiguous grad_output(grads.output), grad_h_n(grads.h_n), grad_c_n(grads.c_n), grad_c_all(grads.c_all);
  bool wants_parameters = false, wants_input_products = needs[0] != 0;
  for (size_t n = 0; n < a.weights.size(); ++n) {
    const int64_t k = static_cast<int64_t>(n) % call.per_direction, own = k - call.first_unit_parameter();
    wants_parameters = wants_parameters || (own >= 0 && own < call.unit_parameters() && needs[3 + n] != 0);
    wants_input_products = wants_input_products || (k == 0 && needs[3 + n] != 0);
  }
  const auto grad_of_gates = [&] {
    return call.rows_tensor({size.directions, call.cell.gates(), size.hidden_size}, input_type);
  };
  const bool two_products = wants_input_products && (call.cell.norm(kNormInput) || call.cell.norm(kNormRecurrent));
  const Tensor grad_gates = grad_of_gates();
  const ScalarType saved_type = call.saved_type();
  const RecurrenceGradients own = {
      grad_gates, two_products ? grad_of_gates() : grad_gates,
      wants_parameters ? call.rows_tensor({size.directions, call.unit_parameters(), size.hidden_size}, saved_type)
                       : call.empty({0}, saved_type),
      a.projection ? call.rows_tensor({size.directions, size.state_size}, input_type) : call.empty({0}, input_type),
      norm_sums(call, needs)};
  Tensor grad_h_0 = call.empty(needs[1] ? call.h_shape() : std::vector<int64_t>{0}, input_type);
  Tensor grad_c_0 = call.empty(needs[2] ? call.c_shape() : std::vector<int64_t>{0}, input_type);

  cuda::BackwardParams p = {};
  call.fill(p);
  p.c_all = c_all.const_data_ptr();
  p.gates = saved.gates.const_data_ptr();
  p.grad_output = grad_output.data();
  p.grad_h_n = grad_h_n.data();
  p.grad_c_n = grad_c_n.data();
  p.grad_c_all = grad_c_all.data();
  p.grad_gates = own.gates.mutable_data_ptr();
  p.grad_input_products = two_products ? own.input_products.mutable_data_ptr() : nullptr;
  p.grad_unit_parameters = wants_parameters ? own.parameters.mutable_data_ptr() : nullptr;
  p.norm_sums = own.norm_sums.numel() > 0 ? own.norm_sums.mutable_data_ptr() : nullptr;
  p.grad_state = a.projection ? own.state.mutable_data_ptr() : nullptr;
  p.grad_h_0 = needs[1] ? grad_h_0.mutable_data_ptr() : nullptr;
  p.grad_c_0 = needs[2] ? grad_c_0.mutable_data_ptr() : nullptr;
  const cuda::Tiling tiling = call.tiling(size.steps, true);
  {
    const Tensor workspace = call.workspace(cuda::backward_workspace(call.math, p, tiling));
    p.workspace = CudaCall::align(workspace);
    cuda::backward(call.math, p, tiling, call.stream);
  }

  return {input_gradient(call, own, needs[0] != 0), grad_h_0, grad_c_0, weight_gradients(call, saved, own, needs)};
}

}  // namespace customlstm

#endif  // USE_CUDA
