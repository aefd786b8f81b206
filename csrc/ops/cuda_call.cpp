// Checks, allocates and plans for a call on a GPU; nothing here depends on whether it is forward or backward.
#ifdef USE_CUDA

#include "cuda_call.h"

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>

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

const LayerArguments& checked(const LayerArguments& a) {
  check(a.input.is_cuda(), "input is not on a GPU; this kernel runs there only");
  return a;
}

MathKind math_on(int device, StorageType type) {
  supported_limits(device);
  cuda::make_current(device);
  return math_kind(type);
}

void* current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

}  // namespace

CudaCall::CudaCall(const LayerArguments& a)
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

// Lengths, and the first rows of the steps of packed data.
void CudaCall::put_on_device() {
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

const cuda::WrittenKernels* CudaCall::written_kernels() const {
  if (cell.registered() == nullptr) return nullptr;
  const int capability = supported_limits(device).capability;
  const cuda::WrittenKernels* found = find_cuda_kernels(*cell.registered(), math, capability);
  check(found != nullptr, "the cell ", arguments.cell, " has no CUDA kernel for ", text_of(math),
        " on compute capability ", capability / 10, ".", capability % 10,
        " in this process; call customlstm.jit.register(cell, dtype, device) first, or use backend='reference'");
  return found;
}

cuda::Tiling CudaCall::tiling(int64_t steps, bool backward) const {
  const cuda::Request request = {
      steps,           size.batch,           size.hidden_size, size.state_size,
      size.directions, arguments.projection, backward,         !one_length_,
      math,            static_cast<int32_t>(cell.gates()),     is_normalised()};
  return tiling_for(request, device);
}

Tensor CudaCall::input_rows() const {
  return arguments.input.dim() == 2 ? arguments.input : torch::stable::flatten(arguments.input, 0, 1);
}

Tensor CudaCall::input_rows_without_padding() const {
  if (!sequences.padded()) return input_rows();
  Tensor copy = new_empty(arguments.input, {size.rows, size.input_size});
  torch::stable::copy_(copy, input_rows());
  zero_padding(copy, size.input_size * input_bytes);
  return copy;
}

Tensor CudaCall::input_weights() const {
  if (size.directions == 1) return arguments.weights[0];
  return concatenated({arguments.weights[0], arguments.weights[per_direction]});
}

Tensor CudaCall::rows_tensor(std::initializer_list<int64_t> last, ScalarType dtype) const {
  int64_t width = 1;
  for (const int64_t one : last) width *= one;
  Tensor tensor = new_empty(arguments.input, rows_shape(last), dtype);
  zero_padding(tensor, width * static_cast<int64_t>(tensor.element_size()));
  return tensor;
}

void CudaCall::zero_padding(Tensor& tensor, int64_t row_bytes) const {
  if (!sequences.padded() || tensor.numel() == 0) return;
  cuda::zero_padding(sizes_, sequences_, row_bytes, tensor.mutable_data_ptr(), stream);
}

Tensor CudaCall::copy_or_zeros(const std::optional<Tensor>& from, const std::vector<int64_t>& shape) const {
  if (!from) return new_zeros(arguments.input, shape);
  Tensor copy = new_empty(arguments.input, shape);
  torch::stable::copy_(copy, *from);
  return copy;
}

Tensor CudaCall::empty(const std::vector<int64_t>& shape, ScalarType dtype) const {
  return new_empty(arguments.input, shape, dtype);
}

Tensor CudaCall::workspace(int64_t bytes) const {
  return new_empty(arguments.input, {bytes + kAlignment}, ScalarType::Byte);
}

void* CudaCall::align(const Tensor& workspace) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  return reinterpret_cast<void*>((at + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace customlstm

#endif  // USE_CUDA
