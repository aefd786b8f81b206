#include "checks.h"

namespace customlstm {

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << ']';
  return text.str();
}

std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    default: return "dtype number " + std::to_string(static_cast<int>(type));
  }
}

std::string name_of(StorageType type) {
  const char* const names[kStorageTypes] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(type)];
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "the CPU";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "a device of another kind";
}

bool same_device(const Tensor& a, const Tensor& b) {
  if (b.is_cpu()) return a.is_cpu();
  return b.is_cuda() && a.is_cuda() && a.get_device_index() == b.get_device_index();
}

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t d = 0;
  for (const int64_t size : expected) same = same && tensor.size(d++) == size;
  if (same) return;
  std::ostringstream text;
  for (const int64_t size : expected) text << (text.tellp() > 0 ? ", " : "") << size;
  fail(name, " has shape ", shape_of(tensor), ", expected [", text.str(), "]");
}

void check_like(const char* name, const Tensor& tensor, const Tensor& input) {
  if (!same_device(tensor, input)) {
    fail(name, " is on ", device_of(tensor), ", but input is on ", device_of(input), "; move one of them");
  }
  check(tensor.scalar_type() == input.scalar_type(), name, " is ", name_of(tensor.scalar_type()), ", but input is ",
        name_of(input.scalar_type()), "; convert one of them");
}

StorageType storage_type(const Tensor& input) {
  switch (input.scalar_type()) {
    case ScalarType::Float: return StorageType::kFloat32;
    case ScalarType::Double: return StorageType::kFloat64;
    case ScalarType::BFloat16: return StorageType::kBFloat16;
    case ScalarType::Half: return StorageType::kFloat16;
    default:
      fail("input is ", name_of(input.scalar_type()),
           ", but the kernels take float32, float64, bfloat16 and float16; convert it, or use backend=\"reference\"");
  }
}

ScalarType accumulation_type(StorageType type) {
  return type == StorageType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

Contiguous::Contiguous(const Tensor& tensor)
    : tensor_(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor)) {}

Contiguous::Contiguous(const std::optional<Tensor>& tensor) {
  if (tensor) *this = Contiguous(*tensor);
}

}  // namespace customlstm
