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
#include "layer_ops.h"
#include "op_string.h"
#include "schema.h"

namespace customlstm {

namespace {

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
  m.def(
      "lstm_pack(Tensor[] weights, str cell, float[] cell_args, bool bias, bool projection, int batch) "
      "-> Tensor packed");
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
