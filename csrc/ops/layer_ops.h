// The ops of one device as the dispatcher calls them, from the two functions that compute a layer there.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "layer_arguments.h"
#include "op_string.h"

namespace customlstm {

using OptionalTensor = std::optional<Tensor>;
using torch::stable::unsqueeze;
using torch::stable::squeeze;

using Forward = LayerResult(const LayerArguments&, int64_t save);
using Backward = LayerGradients(const LayerArguments&, const SavedTensors&, const GradOutputs&,
                                const std::vector<int64_t>& needs);

template <Forward layer_forward>
LayerResult lstm_layer(Tensor input, OptionalTensor h_0, OptionalTensor c_0, std::vector<Tensor> weights,
                       OptionalTensor batch_sizes, OptionalTensor lengths, OptionalTensor resets,
                       OptionalTensor recurrent_mask, OptionalTensor zoneout_h, OptionalTensor zoneout_c, OpString cell,
                       std::vector<double> cell_args, bool bias, bool projection, bool bidirectional,
                       double recurrent_scale, double zoneout_h_rate, double zoneout_c_rate, int64_t save) {
  return layer_forward({input, h_0, c_0, weights, batch_sizes, lengths, resets, recurrent_mask, zoneout_h, zoneout_c,
                        cell.text, cell_args, bias, projection, bidirectional, recurrent_scale, zoneout_h_rate,
                        zoneout_c_rate},
                       save);
}

template <Backward layer_backward>
LayerGradients lstm_layer_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                                   OptionalTensor grad_c_all, Tensor input, OptionalTensor h_0, OptionalTensor c_0,
                                   std::vector<Tensor> weights, OptionalTensor batch_sizes, OptionalTensor lengths,
                                   OptionalTensor resets, OptionalTensor recurrent_mask, OptionalTensor zoneout_h,
                                   OptionalTensor zoneout_c, OpString cell, std::vector<double> cell_args, bool bias,
                                   bool projection, bool bidirectional, double recurrent_scale,
                                   double zoneout_h_rate, double zoneout_c_rate, Tensor output, Tensor c_all,
                                   Tensor gates, Tensor hidden, std::vector<int64_t> needs) {
  return layer_backward({input, h_0, c_0, weights, batch_sizes, lengths, resets, recurrent_mask, zoneout_h, zoneout_c,
                         cell.text, cell_args, bias, projection, bidirectional, recurrent_scale, zoneout_h_rate,
                         zoneout_c_rate},
                        {output, c_all, gates, hidden}, {grad_output, grad_h_n, grad_c_n, grad_c_all}, needs);
}

// A single step is a layer of one step: input [B, L], states [B, P] and [B, H].
struct OneStep {
  const Tensor x;
  const OptionalTensor h, c, none;

  OneStep(const Tensor& input, const Tensor& h_0, const Tensor& c_0)
      : x(unsqueeze(input, 0)), h(unsqueeze(h_0, 0)), c(unsqueeze(c_0, 0)) {}

  LayerArguments arguments(const std::vector<Tensor>& weights, const std::string& cell,
                           const std::vector<double>& cell_args, bool bias, bool projection) const {
    return {x, h, c, weights, none, none, none, none, none, none,
            cell, cell_args, bias, projection, false, 1.0, 0.0, 0.0};
  }
};

template <Forward layer_forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell(Tensor input, Tensor h_0, Tensor c_0,
                                                             std::vector<Tensor> weights, OpString cell,
                                                             std::vector<double> cell_args, bool bias,
                                                             bool projection, int64_t save) {
  const OneStep step(input, h_0, c_0);
  auto [output, h_n, c_n, c_all, gates, hidden] =
      layer_forward(step.arguments(weights, cell.text, cell_args, bias, projection), save);
  const bool saved = save == 2;
  return {squeeze(h_n, 0), squeeze(c_n, 0), save >= 1 ? squeeze(c_all, 0) : c_all,
          saved ? squeeze(squeeze(gates, 0), 1) : gates, saved && projection ? squeeze(hidden, 0) : hidden};
}

template <Backward layer_backward>
LayerGradients lstm_cell_backward(OptionalTensor grad_h_1, OptionalTensor grad_c_1, Tensor input, Tensor h_0,
                                  Tensor c_0, std::vector<Tensor> weights, OpString cell,
                                  std::vector<double> cell_args, bool bias, bool projection, Tensor h_1, Tensor c_all,
                                  Tensor gates, Tensor hidden, std::vector<int64_t> needs) {
  const OneStep step(input, h_0, c_0);
  auto [grad_input, grad_h, grad_c, grad_weights] =
      layer_backward(step.arguments(weights, cell.text, cell_args, bias, projection), {h_1, c_all, gates, hidden},
                     {step.none, grad_h_1, grad_c_1, step.none}, needs);
  return {needs[0] ? squeeze(grad_input, 0) : grad_input, needs[1] ? squeeze(grad_h, 0) : grad_h,
          needs[2] ? squeeze(grad_c, 0) : grad_c, grad_weights};
}

}  // namespace customlstm
