// Number formats of the host executor: rounding as the GPU's conversions do it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../types.h"
#include "fast_math.h"

namespace customlstm {
namespace device {

namespace host {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

}  // namespace host

inline float to_float(BFloat16 x) { return host::float_of(uint32_t(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return host::float_of(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  // The exponent is off by 127 - 15: one exact product mends it, subnormals included.
  return host::float_of(sign | host::bits_of(host::float_of(magnitude << 13) * 5.192296858534828e33f));
}

inline BFloat16 to_bf16(float x) {
  const uint32_t bits = host::bits_of(x);
  // A NaN becomes quiet, since rounding could carry it to infinity.
  return {x == x ? uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t((bits >> 16) | 0x40)};
}

inline Half to_half(float x) {
  uint32_t bits = host::bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {uint16_t(sign | 0x7c00)};   // rounds to 2^16 or more
  if (bits < 0x38800000)                                      // subnormal: adding 0.5 aligns and rounds the mantissa
    return {uint16_t(sign | (host::bits_of(host::float_of(bits) + 0.5f) - 0x3f000000))};
  return {uint16_t(sign | ((bits + 0xc8000fff + ((bits >> 13) & 1)) >> 13))};
}

// Ten bits of mantissa; the carry of the rounding may go into the exponent, and there it is right.
inline uint32_t to_tf32(float x) {
  const uint32_t bits = host::bits_of(x);
  if (x != x) return 0x7fffffff;
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

namespace host {

// The approximations of which a GPU makes fast_sigmoid and fast_tanh, here at their best.
struct Machine {
  static float exp2(float x) { return std::exp2(x); }
  static float reciprocal(float x) { return 1.0f / x; }
};

}  // namespace host

inline float fast_sigmoid(float x) { return fast_sigmoid<host::Machine>(x); }
inline float fast_tanh(float x) { return fast_tanh<host::Machine>(x); }

}  // namespace device
}  // namespace customlstm
