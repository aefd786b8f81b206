// The ops: schemas, and the kernels behind them. LibTorch stable ABI only, so that one binary serves every torch
// from 2.10 on. Fake kernels, autograd and autocast rules are registered from customlstm/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "cpu_layer.h"
#include "cpu_stream.h"
#ifdef USE_CUDA
#include "../cuda/kernels.h"
#include "cuda_layer.h"
#endif
#include "../cpu/kernels.h"
#include "interface.h"
#include "op_string.h"
#include "schema.h"

namespace customlstm {

namespace {

using OptionalTensor = std::optional<Tensor>;
using torch::stable::unsqueeze;
using torch::stable::squeeze;

// The ops of one device, from what computes a layer there.
using Forward = LayerResult(const LayerArguments&, int64_t save);
using Backward = LayerGradients(const LayerArguments&, const SavedTensors&, const GradOutputs&,
                                const std::vector<int64_t>& needs);

template <Forward layer_forward>
LayerResult lstm_layer(Tensor input, OptionalTensor h_0, OptionalTensor c_0, std::vector<Tensor> weights,
                       OptionalTensor batch_sizes, OptionalTensor lengths, OptionalTensor resets,
                       OptionalTensor recurrent_mask, OpString cell, std::vector<double> cell_args, bool bias,
                       bool projection, bool bidirectional, double recurrent_scale, int64_t save) {
  return layer_forward({input, h_0, c_0, weights, batch_sizes, lengths, resets, recurrent_mask, cell.text, cell_args,
                        bias, projection, bidirectional, recurrent_scale},
                       save);
}

template <Backward layer_backward>
LayerGradients lstm_layer_backward(OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                                   OptionalTensor grad_c_all, Tensor input, OptionalTensor h_0, OptionalTensor c_0,
                                   std::vector<Tensor> weights, OptionalTensor batch_sizes, OptionalTensor lengths,
                                   OptionalTensor resets, OptionalTensor recurrent_mask, OpString cell,
                                   std::vector<double> cell_args, bool bias, bool projection, bool bidirectional,
                                   double recurrent_scale, Tensor output, Tensor c_all, Tensor gates, Tensor hidden,
                                   std::vector<int64_t> needs) {
  return layer_backward({input, h_0, c_0, weights, batch_sizes, lengths, resets, recurrent_mask, cell.text, cell_args,
                         bias, projection, bidirectional, recurrent_scale},
                        {output, c_all, gates, hidden}, {grad_output, grad_h_n, grad_c_n, grad_c_all}, needs);
}

// A single step is a layer of one step: input [B, L], states [B, P] and [B, H].
template <Forward layer_forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_cell(Tensor input, Tensor h_0, Tensor c_0,
                                                             std::vector<Tensor> weights, OpString cell,
                                                             std::vector<double> cell_args, bool bias,
                                                             bool projection, int64_t save) {
  const OptionalTensor none, h(unsqueeze(h_0, 0)), c(unsqueeze(c_0, 0));
  const Tensor x = unsqueeze(input, 0);
  auto [output, h_n, c_n, c_all, gates, hidden] =
      layer_forward({x, h, c, weights, none, none, none, none, cell.text, cell_args, bias, projection, false, 1.0}, save);
  const bool saved = save == 2;
  return {squeeze(h_n, 0), squeeze(c_n, 0), save >= 1 ? squeeze(c_all, 0) : c_all,
          saved ? squeeze(squeeze(gates, 0), 1) : gates, saved && projection ? squeeze(hidden, 0) : hidden};
}

template <Backward layer_backward>
LayerGradients lstm_cell_backward(OptionalTensor grad_h_1, OptionalTensor grad_c_1, Tensor input, Tensor h_0,
                                  Tensor c_0, std::vector<Tensor> weights, OpString cell,
                                  std::vector<double> cell_args, bool bias, bool projection, Tensor h_1, Tensor c_all,
                                  Tensor gates, Tensor hidden, std::vector<int64_t> needs) {
  const OptionalTensor none, h(unsqueeze(h_0, 0)), c(unsqueeze(c_0, 0));
  const Tensor x = unsqueeze(input, 0);
  auto [grad_input, grad_h, grad_c, grad_weights] =
      layer_backward({x, h, c, weights, none, none, none, none, cell.text, cell_args, bias, projection, false, 1.0},
                     {h_1, c_all, gates, hidden}, {none, grad_h_1, grad_c_1, none}, needs);
  return {needs[0] ? squeeze(grad_input, 0) : grad_input, needs[1] ? squeeze(grad_h, 0) : grad_h,
          needs[2] ? squeeze(grad_c, 0) : grad_c, grad_weights};
}

Tensor lstm_pack(std::vector<Tensor> weights, OpString cell, std::vector<double> cell_args, bool bias, bool projection,
                 int64_t batch) {
  return cpu_pack(weights, cell.text, cell_args, bias, projection, batch);
}

Tensor lstm_stream(Tensor packed, Tensor input, Tensor h, Tensor c) { return cpu_stream(packed, input, h, c); }

std::string cpu_isa() { return kernels().name; }

std::string build_info() {
  std::string kernels = "default";
  if (kernels_avx2()) kernels += " avx2";
  if (kernels_avx512()) kernels += " avx512";
  if (kernels_avx512_bf16()) kernels += " avx512_bf16";
#ifdef USE_CUDA
  const std::string cuda = std::string("for ") + cuda::architectures();
#else
  const std::string cuda = "none";
#endif
  return "interface " + std::to_string(CUSTOMLSTM_INTERFACE) + "; CPU kernels " + kernels + "; CUDA kernels " + cuda +
         "; compiler " +
#if defined(__clang__)
         "clang " __clang_version__
#elif defined(__GNUC__)
         "gcc " __VERSION__
#else
         "unknown"
#endif
      ;
}

}  // namespace

STABLE_TORCH_LIBRARY(customlstm, m) {
  m.def("lstm_layer" CUSTOMLSTM_LAYER_SCHEMA);
  m.def("lstm_layer_backward" CUSTOMLSTM_LAYER_BACKWARD_SCHEMA);
  m.def("lstm_cell" CUSTOMLSTM_CELL_SCHEMA);
  m.def("lstm_cell_backward" CUSTOMLSTM_CELL_BACKWARD_SCHEMA);
  // Of the library alone: customlstm.Stream calls the layer itself where there is none.
  m.def("lstm_pack(Tensor[] weights, str cell, float[] cell_args, bool bias, bool projection, int batch) -> Tensor packed");
  m.def("lstm_stream(Tensor packed, Tensor input, Tensor(a!) h, Tensor(b!) c) -> Tensor output");
  m.def("cpu_isa() -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(customlstm, CPU, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer<cpu_layer_forward>));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward<cpu_layer_backward>));
  m.impl("lstm_cell", TORCH_BOX(&lstm_cell<cpu_layer_forward>));
  m.impl("lstm_cell_backward", TORCH_BOX(&lstm_cell_backward<cpu_layer_backward>));
  m.impl("lstm_pack", TORCH_BOX(&lstm_pack));
  m.impl("lstm_stream", TORCH_BOX(&lstm_stream));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(customlstm, CUDA, m) {
  m.impl("lstm_layer", TORCH_BOX(&lstm_layer<cuda_layer_forward>));
  m.impl("lstm_layer_backward", TORCH_BOX(&lstm_layer_backward<cuda_layer_backward>));
  m.impl("lstm_cell", TORCH_BOX(&lstm_cell<cuda_layer_forward>));
  m.impl("lstm_cell_backward", TORCH_BOX(&lstm_cell_backward<cuda_layer_backward>));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(customlstm, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("build_info", TORCH_BOX(&build_info));
}

}  // namespace customlstm
