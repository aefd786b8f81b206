// Around the recurrence on the GPU: everything that needs no order of time is one product for all steps, by cuBLAS.
// Forward, the input projection; backward, the gradients of the weights and of the input.
#ifdef USE_CUDA

#include "cuda_layer.h"

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>

#include "../cuda/kernels.h"
#include "cuda_norm.h"
#include "matrices.h"

// cuBLAS is in the process, torch brought it; a header and a library of it would be needed for this one function.
extern "C" __attribute__((visibility("default"))) int cublasGetMathMode(void* handle, int* mode);

namespace customlstm {

namespace {

using cuda::MathKind;
using torch::stable::new_empty;
using torch::stable::new_zeros;

constexpr int64_t kAlignment = 256;
constexpr int32_t kOldestCapability = 80;
// Inference computes the input projection of at most so many bytes at a time.
#ifndef CUSTOMLSTM_CHUNK_BYTES   // a test cuts small calls
#define CUSTOMLSTM_CHUNK_BYTES (int64_t{256} << 20)
#endif

// Whether float32 products may run as TF32. PyTorch's switch has two faces (allow_tf32 and fp32_precision, one of which
// raises once the other was set), a global value and a thread-local guard, and none of them has a C function of its
// own. But torch sets the math mode of the cuBLAS handle from all of them each time it hands it out, and so does
// torch.mm: what the handle says now is what PyTorch's own products do in this very call. No argument of the op, so
// compiled, exported and scripted programs follow the switch at run time, as their other products do.
bool tf32_allowed() {
  constexpr int kTf32TensorOpMath = 3;   // CUBLAS_TF32_TENSOR_OP_MATH
  void* handle = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  int mode = 0;
  const int status = cublasGetMathMode(handle, &mode);
  check(status == 0, "cublasGetMathMode failed with status ", status);
  return mode == kTf32TensorOpMath;
}

const char* text_of(MathKind math) {
  switch (math) {
    case MathKind::kFma32: return "float32";
    case MathKind::kFma64: return "float64";
    case MathKind::kBFloat16: return "bfloat16";
    case MathKind::kFloat16: return "float16";
    case MathKind::kTf32: return "float32 in TF32";
  }
  return "unknown";
}

MathKind math_kind(StorageType type) {
  switch (type) {
    case StorageType::kFloat64: return MathKind::kFma64;
    case StorageType::kBFloat16: return MathKind::kBFloat16;
    case StorageType::kFloat16: return MathKind::kFloat16;
    default: return tf32_allowed() ? MathKind::kTf32 : MathKind::kFma32;
  }
}

const cuda::DeviceLimits& supported_limits(int device) {
  const cuda::DeviceLimits& limits = cuda::device_limits(device);
  check(limits.capability >= kOldestCapability, "cuda:", device, " has compute capability ", limits.capability / 10,
        ".", limits.capability % 10, ", the kernels need 8.0 (Ampere) or later; use backend=\"reference\"");
  return limits;
}

cuda::Tiling find_tiling(const cuda::Request& request, int device, int32_t forced) {
  const cuda::LaunchPlan plan = cuda::plan_layer(request, supported_limits(device), forced);
  if (plan.tiling.warps == 0) {
    check(forced >= 0, "no kernel variant fits this call");
    fail("CUSTOMLSTM_CUDA_VARIANT asks for ", cuda::name_of(static_cast<cuda::Variant>(forced)),
         ", which does not fit: ", plan.why_not[forced], "; unset it, or choose step, which always fits");
  }
  return plan.tiling;
}

// The plan's answers, kept: to find one takes longer than to run a step.
cuda::Tiling tiling_for(const cuda::Request& request, int device) {
  constexpr size_t kMost = 4096;   // sizes vary from call to call; then start afresh
  using Key = std::array<int64_t, 13>;
  static std::mutex mutex;
  static std::map<Key, cuda::Tiling> known;
  const int32_t forced = cuda::variant_named(std::getenv("CUSTOMLSTM_CUDA_VARIANT"));
  const Key key = {device,          forced,           request.steps,      request.batch,
                   request.hidden_size, request.state_size, request.directions, request.projection,
                   request.backward, request.ragged,   static_cast<int64_t>(request.math), request.gates,
                   request.normalised};
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  const cuda::Tiling tiling = find_tiling(request, device, forced);
  const std::lock_guard<std::mutex> lock(mutex);
  if (known.size() >= kMost) known.clear();
  return known[key] = tiling;
}

void* align(const Tensor& workspace) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  return reinterpret_cast<void*>((at + kAlignment - 1) / kAlignment * kAlignment);
}

template <class Pointer>
Pointer* advance(Pointer* pointer, int64_t elements, int64_t element_bytes) {
  if (!pointer) return nullptr;
  return reinterpret_cast<Pointer*>(reinterpret_cast<uintptr_t>(pointer) + elements * element_bytes);
}

// A checked call on its device and stream.
class Call : public LayerCall {
  // Above all that needs it, and until everything is enqueued.
  const torch::stable::accelerator::DeviceGuard guard_;

 public:
  explicit Call(const LayerArguments& a)
      : LayerCall(checked(a)),
        guard_(a.input.get_device_index()),
        device(a.input.get_device_index()),
        math(math_on(device, type)),
        stream(current_stream(device)),
        input_bytes(static_cast<int64_t>(a.input.element_size())),
        saved_bytes(type == StorageType::kFloat64 ? 8 : 4),
        one_length_(sequences.lengths().empty() && !sequences.device_lengths()),
        written_(written_kernels()),
        sizes_{size.steps,      size.batch,   size.rows,     size.hidden_size, size.state_size,
               size.directions, cell.gates(), cell.states(), a.bias,           a.projection} {
    if (!one_length_) put_on_device();
    sequences_.resets = sequences.resets();
    sequences_.recurrent_mask = recurrent_mask();
    sequences_.recurrent_scale = a.recurrent_scale;
    sequences_.zoneout_h = {zoneout_h(), a.zoneout_h_rate};
    sequences_.zoneout_c = {zoneout_c(), a.zoneout_c_rate};
  }

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

  cuda::Request request(int64_t steps, bool backward) const {
    return {steps,           size.batch,           size.hidden_size, size.state_size,
            size.directions, arguments.projection, backward,         !one_length_,
            math,            static_cast<int32_t>(cell.gates()), is_normalised()};
  }
  bool is_normalised() const { return cell.kind() == CellKind::kNormalised; }

  // The input as a matrix [rows, L]. A transposed view (batch_first) is copied here: the kernels read their part of
  // the gates row by row in the order of time, so one copy is needed either way, and the input is the smallest.
  Tensor input_rows() const {
    return arguments.input.dim() == 2 ? arguments.input : torch::stable::flatten(arguments.input, 0, 1);
  }

  // The same with zeros beyond each length: a NaN there would reach the weight gradients as 0 * NaN.
  Tensor input_rows_without_padding() const {
    if (!sequences.padded()) return input_rows();
    Tensor copy = new_empty(arguments.input, {size.rows, size.input_size});
    torch::stable::copy_(copy, input_rows());
    zero_padding(copy, size.input_size * input_bytes);
    return copy;
  }

  // W_ih of all directions, one below the other: [D * G * H, L].
  Tensor input_weights() const {
    if (size.directions == 1) return arguments.weights[0];
    return concatenated({arguments.weights[0], arguments.weights[per_direction]});
  }

  // A tensor of the rows of the call, each of sizes `last`; zero beyond a length, otherwise the kernel's to fill.
  Tensor rows_tensor(std::initializer_list<int64_t> last, ScalarType dtype) const {
    int64_t width = 1;
    for (const int64_t one : last) width *= one;
    Tensor tensor = new_empty(arguments.input, rows_shape(last), dtype);
    zero_padding(tensor, width * static_cast<int64_t>(tensor.element_size()));
    return tensor;
  }

  // A contiguous tensor with the values of `from`, or zeros.
  Tensor copy_or_zeros(const std::optional<Tensor>& from, const std::vector<int64_t>& shape) const {
    if (!from) return new_zeros(arguments.input, shape);
    Tensor copy = new_empty(arguments.input, shape);
    torch::stable::copy_(copy, *from);
    return copy;
  }

  Tensor workspace(int64_t bytes) const {
    return new_empty(arguments.input, {bytes + kAlignment}, ScalarType::Byte);
  }

  Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) const {
    return new_empty(arguments.input, shape, dtype);
  }

  const cuda::Sizes& sizes() const { return sizes_; }
  const cuda::Sequences& on_device() const { return sequences_; }
  // Whether every sequence has all steps, as far as the host knows.
  bool one_length() const { return one_length_; }
  std::vector<int64_t> h_shape() const { return {size.directions, size.batch, size.state_size}; }
  std::vector<int64_t> c_shape() const { return {size.directions, size.batch, cell.states() * size.hidden_size}; }
  int64_t gates_width() const { return cell.gates() * hidden_width(); }

  const int device;
  const MathKind math;
  void* const stream;
  const int64_t input_bytes, saved_bytes;   // of an element

 private:
  static const LayerArguments& checked(const LayerArguments& a) {
    check(a.input.is_cuda(), "input is not on a GPU; this kernel runs there only");
    return a;
  }

  static void* current_stream(int device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return stream;
  }

  // Lengths, and the first rows of the steps of packed data.
  void put_on_device() {
    if (const void* lengths = sequences.device_lengths()) {
      sequences_.lengths = static_cast<const int64_t*>(lengths);
      return;
    }
    std::vector<int64_t> host = sequences.lengths();
    host.insert(host.end(), sequences.step_row().begin(), sequences.step_row().end());
    integers_ = empty({static_cast<int64_t>(host.size())}, ScalarType::Long);
    int64_t* at = static_cast<int64_t*>(integers_->mutable_data_ptr());
    cuda::upload(host.data(), static_cast<int64_t>(host.size() * sizeof(int64_t)), at, stream);
    sequences_.lengths = at;
    sequences_.step_row = sequences.step_row().empty() ? nullptr : at + size.batch;
  }

  void zero_padding(Tensor& tensor, int64_t row_bytes) const {
    if (!sequences.padded() || tensor.numel() == 0) return;
    cuda::zero_padding(sizes_, sequences_, row_bytes, tensor.mutable_data_ptr(), stream);
  }

  static MathKind math_on(int device, StorageType type) {
    supported_limits(device);
    cuda::make_current(device);
    return math_kind(type);
  }

  // Null for a cell that is always there.
  const cuda::WrittenKernels* written_kernels() const {
    if (cell.registered() == nullptr) return nullptr;
    const int capability = supported_limits(device).capability;
    const cuda::WrittenKernels* found = find_cuda_kernels(*cell.registered(), math, capability);
    check(found != nullptr, "the cell ", arguments.cell, " has no CUDA kernel for ", text_of(math),
          " on compute capability ", capability / 10, ".", capability % 10,
          " in this process; call customlstm.jit.register(cell, dtype, device) first, or use backend='reference'");
    return found;
  }

  const bool one_length_;
  const cuda::WrittenKernels* const written_;
  const cuda::Sizes sizes_;
  cuda::Sequences sequences_ = {};
  std::optional<Tensor> integers_;   // what sequences_ points to
};

// Steps that inference computes at once, so that their part of the gates stays small. Only where the state that goes
// from one piece to the next loses nothing: 16-bit types would round the cell state there.
int64_t steps_at_once(const Call& call, int64_t save) {
  const LayerSizes& size = call.size;
  const bool can_cut = save < 2 && size.directions == 1 && call.one_length() && call.input_bytes == call.saved_bytes;
  if (!can_cut) return size.steps;
  const int64_t step_bytes = size.batch * call.gates_width() * call.saved_bytes;
  return std::min(size.steps, std::max<int64_t>(1, CUSTOMLSTM_CHUNK_BYTES / step_bytes));
}

void enqueue(const Call& call, cuda::ForwardParams& p) {
  const cuda::Tiling tiling = tiling_for(call.request(p.size.steps, false), call.device);
  const Tensor workspace = call.workspace(cuda::forward_workspace(call.math, p, tiling));
  p.workspace = align(workspace);
  cuda::forward(call.math, p, tiling, call.stream);
}

// All steps; `gates` is the saved tensor or empty.
void run_at_once(const Call& call, cuda::ForwardParams p, Tensor& gates) {
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
void run_in_pieces(const Call& call, const cuda::ForwardParams& whole, int64_t steps) {
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
  const Call call(a);
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

namespace {

// The hidden state that entered each row, [D, rows, P].
Tensor previous_hidden(const Call& call, const Tensor& output) {
  const Tensor previous = call.empty({call.size.directions, call.size.rows, call.size.state_size}, call.input_type());
  const cuda::PreviousHiddenParams p = {call.sizes(), call.on_device(), call.h_0.data(), output.const_data_ptr(),
                                        previous.mutable_data_ptr()};
  cuda::previous_hidden(call.type, p, call.stream);
  return previous;
}

// `count` of the sums, a copy of its own: two results of an op must not share memory.
Tensor part_of_sums(const Call& call, const Tensor& sums, int64_t first, int64_t count) {
  Tensor grad = call.empty({count}, call.input_type());
  torch::stable::copy_(grad, torch::stable::narrow(const_cast<Tensor&>(sums), 0, first, count));
  return grad;
}

// What the recurrence leaves.
struct RecurrenceGradients {
  Tensor gates;            // [rows, D, G, H]: of the pre-activations, with layer norm of W_hh h
  Tensor input_products;   // of W_ih x, which is the same tensor where neither product is normalised
  Tensor parameters;       // [rows, D, unit parameters, H], or empty: not wanted
  Tensor state;            // [rows, D, P]: of the hidden state, before the projection's transpose
  Tensor norm_sums;        // see cuda_norm.h
};

// The gradients of the weights: products with what was multiplied in forward; those of the cell's own parameters and of
// what is added to the gates are sums over the rows.
std::vector<Tensor> weight_gradients(const Call& call, const SavedTensors& saved, const RecurrenceGradients& from,
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

// Without a row, the state's gradients pass through and all others are zero.
LayerGradients gradients_of_nothing(const Call& call, const GradOutputs& grads, const std::vector<int64_t>& needs) {
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
    grad_weights.push_back(new_zeros(call.arguments.input, shape_if(needs[3 + k], shape)));
  }
  return {call.empty(shape_if(needs[0], call.rows_shape({call.size.input_size})), call.input_type()),
          passed(needs[1], grads.h_n, call.h_shape()), passed(needs[2], grads.c_n, call.c_shape()), grad_weights};
}

}  // namespace

LayerGradients cuda_layer_backward(const LayerArguments& a, const SavedTensors& given, const GradOutputs& grads,
                                   const std::vector<int64_t>& needs) {
  const Call call(a);
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
  const auto grad_of_gates = [&] { return call.rows_tensor({size.directions, call.cell.gates(), size.hidden_size}, input_type); };
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
  const cuda::Tiling tiling = tiling_for(call.request(size.steps, true), call.device);
  {
    const Tensor workspace = call.workspace(cuda::backward_workspace(call.math, p, tiling));
    p.workspace = align(workspace);
    cuda::backward(call.math, p, tiling, call.stream);
  }

  Tensor grad_input = call.empty(needs[0] ? call.rows_shape({size.input_size}) : std::vector<int64_t>{0}, input_type);
  if (needs[0]) {
    // Both directions at once: their gradients lie side by side, their weights one below the other.
    Tensor out = matrix(grad_input, size.rows, size.input_size);
    multiply(matrix(own.input_products, size.rows, call.gates_width()), call.input_weights(), out);
  }
  return {grad_input, grad_h_0, grad_c_0, weight_gradients(call, saved, own, needs)};
}

}  // namespace customlstm

#endif  // USE_CUDA
