// Which gradient of backward on the GPU is which product or sum of what the recurrence left. cuBLAS multiplies.
#ifdef USE_CUDA

#include "cuda_gradients.h"

#include "../cuda/kernels.h"
#include "cuda_norm.h"
#include "matrices.h"

namespace customlstm {

namespace {

// The hidden state that entered each row, [D, rows, P].
Tensor previous_hidden(const CudaCall& call, const Tensor& output) {
  const Tensor previous = call.empty({call.size.directions, call.size.rows, call.size.state_size}, call.input_type());
  const cuda::PreviousHiddenParams p = {call.sizes(), call.on_device(), call.h_0.data(), output.const_data_ptr(),
                                        previous.mutable_data_ptr()};
  cuda::previous_hidden(call.type, p, call.stream);
  return previous;
}

// `count` of the sums, a copy of its own: two results of an op must not share memory.
Tensor part_of_sums(const CudaCall& call, const Tensor& sums, int64_t first, int64_t count) {
  Tensor grad = call.empty({count}, call.input_type());
  torch::stable::copy_(grad, torch::stable::narrow(const_cast<Tensor&>(sums), 0, first, count));
  return grad;
}

}  // namespace

// The gradients of the weights: products with what was multiplied in forward; those of the cell's own parameters and of
// what is added to the gates are sums over the rows.
std::vector<Tensor> weight_gradients(const CudaCall& call, const SavedTensors& saved, const RecurrenceGradients& from,
                                     const std::vector<int64_t>& needs) {
  const LayerSizes& size = call.size;
  const int64_t gate_rows = call.cell.gates() * size.hidden_size, all_gates = call.gates_width();
  const int64_t count = static_cast<int64_t>(call.arguments.weights.size());
  // Weight k of each direction: 0 w_ih, 1 w_hh, then b_ih and b_hh if there are, then w_hr, then the cell's own.
  const auto wanted = [&](int64_t d, int64_t k) { return needs[3 + d * call.per_direction + k] != 0; };
  const auto anywhere = [&](int64_t k) { return wanted(0, k) || (size.directions == 2 && wanted(1, k)); };
  const int64_t w_hr = call.w_hr_index(), first_parameter = call.first_unit_parameter();
  const bool bias = call.arguments.bias, projection = call.arguments.projection;

  std::optional<Tensor> x, previous, hidden, sums, parameter_sums, norm_sums;
  if (anywhere(0)) x = call.input_rows_without_padding();
  if (anywhere(1)) previous = previous_hidden(call, saved.output);
  if (bias && (anywhere(2) || anywhere(3)) && !call.is_normalised()) {
    sums = column_sums(matrix(from.gates, size.rows, all_gates), call.saved_type());
  }
  if (from.norm_sums.numel() > 0) {
    norm_sums = column_sums(matrix(from.norm_sums, size.batch, from.norm_sums.numel() / size.batch), call.saved_type());
  }
  if (projection && anywhere(w_hr)) {
    hidden = call.saved_type() == call.input_type() ? saved.hidden
                                                    : torch::stable::to(saved.hidden, call.input_type());
  }
  if (from.parameters.numel() > 0) {
    const int64_t width = call.unit_parameters() * call.hidden_width();
    parameter_sums = column_sums(matrix(from.parameters, size.rows, width), call.saved_type());
  }
  std::vector<Tensor> grads;
  for (int64_t n = 0; n < count; ++n) {
    const int64_t d = n / call.per_direction, k = n % call.per_direction;
    const auto gates = [&](const Tensor& of) {
      return transposed(matrix(of, size.rows, all_gates, d * gate_rows, gate_rows));
    };
    const std::optional<SumRange> in_norms = range_in_norm_sums(call, d, k);
    if (!wanted(d, k)) {
      grads.push_back(call.empty({0}, call.input_type()));
    } else if (k == 0) {
      grads.push_back(product(gates(from.input_products), *x));
    } else if (k == 1) {
      const Tensor own = torch::stable::select(*previous, 0, d);
      grads.push_back(product(gates(from.gates), own));
    } else if (projection && k == w_hr) {
      const Tensor state = matrix(from.state, size.rows, call.output_width(), d * size.state_size, size.state_size);
      const Tensor own = matrix(*hidden, size.rows, call.hidden_width(), d * size.hidden_size, size.hidden_size);
      grads.push_back(product(transposed(state), own));
    } else if (in_norms) {
      grads.push_back(part_of_sums(call, *norm_sums, in_norms->first, in_norms->count));
    } else if (k >= first_parameter) {
      const int64_t at = d * call.unit_parameters() + k - first_parameter;
      grads.push_back(part_of_sums(call, *parameter_sums, at * size.hidden_size, size.hidden_size));
    } else {
      grads.push_back(part_of_sums(call, *sums, d * gate_rows, gate_rows));
    }
  }
  return grads;
}

Tensor input_gradient(const CudaCall& call, const RecurrenceGradients& from, bool wanted) {
  const LayerSizes& size = call.size;
  Tensor grad = call.empty(wanted ? call.rows_shape({size.input_size}) : std::vector<int64_t>{0}, call.input_type());
  if (wanted) {
    // Both directions at once: their gradients lie side by side, their weights one below the other.
    Tensor out = matrix(grad, size.rows, size.input_size);
    multiply(matrix(from.input_products, size.rows, call.gates_width()), call.input_weights(), out);
  }
  return grad;
}

LayerGradients gradients_of_nothing(const CudaCall& call, const GradOutputs& grads, const std::vector<int64_t>& needs) {
  const auto shape_if = [&](bool want, std::vector<int64_t> shape) {
    return want ? shape : std::vector<int64_t>{0};
  };
  const auto passed = [&](bool want, const std::optional<Tensor>& grad, const std::vector<int64_t>& shape) {
    return want ? call.copy_or_zeros(grad, shape) : call.empty({0}, call.input_type());
  };
  std::vector<Tensor> grad_weights;
  for (size_t k = 0; k < call.arguments.weights.size(); ++k) {
    const Tensor& weight = call.arguments.weights[k];
    std::vector<int64_t> shape(weight.dim());
    for (int64_t n = 0; n < weight.dim(); ++n) shape[n] = weight.size(n);
    grad_weights.push_back(torch::stable::new_zeros(call.arguments.input, shape_if(needs[3 + k], shape)));
  }
  return {call.empty(shape_if(needs[0], call.rows_shape({call.size.input_size})), call.input_type()),
          passed(needs[1], grads.h_n, call.h_shape()), passed(needs[2], grads.c_n, call.c_shape()), grad_weights};
}

}  // namespace customlstm

#endif  // USE_CUDA
