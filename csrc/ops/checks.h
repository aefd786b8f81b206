// Argument checks of the ops. The Python front end checks first and says it in its users' words; here the same facts
// are checked again, so that no call, whoever makes it, can make a kernel read or write outside a tensor.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../types.h"

namespace customlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  text << "customlstm: ";
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

std::string shape_of(const Tensor& tensor);
std::string name_of(ScalarType type);
std::string name_of(StorageType type);

// "the CPU" or "cuda:1", for messages.
std::string device_of(const Tensor& tensor);
bool same_device(const Tensor& a, const Tensor& b);

void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected);
// The dtype and the device of every floating tensor of a call are those of `input`.
void check_like(const char* name, const Tensor& tensor, const Tensor& input);

StorageType storage_type(const Tensor& input);
// The type in which a call accumulates, keeps its cell state and saves for backward.
ScalarType accumulation_type(StorageType type);

// A tensor that the kernels can read as one contiguous array; owns the copy where one had to be made.
class Contiguous {
 public:
  Contiguous() = default;
  explicit Contiguous(const Tensor& tensor);
  explicit Contiguous(const std::optional<Tensor>& tensor);
  const void* data() const { return tensor_ ? tensor_->const_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> tensor_;
};

}  // namespace customlstm
