// The `str` argument of an op. std::string would do, were it not that the stable-ABI headers of torch 2.10 to 2.13
// leak one at every conversion (pytorch/pytorch issue 191340, mended in 2.14): 48 bytes a call, for ever.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <stdexcept>
#include <string>

namespace customlstm {

struct OpString {
  std::string text;
};

}  // namespace customlstm

namespace torch::stable::detail {

template <>
struct ToImpl<customlstm::OpString> {
  // The headers of different versions pass different further arguments; none matters to a string.
  template <class... Rest>
  static customlstm::OpString call(StableIValue value, Rest...) {
    const StringHandle handle = to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    const bool readable = torch_string_length(handle, &length) == 0 && torch_string_c_str(handle, &data) == 0;
    customlstm::OpString result;
    if (readable) result.text.assign(data, length);
    torch_delete_string(handle);
    if (!readable) throw std::runtime_error("customlstm: torch gave no text for a str argument");
    return result;
  }
};

}  // namespace torch::stable::detail
