// Sweeps fast_sigmoid and fast_tanh over the floats, the machine's approximations off by as much as they may be, and
// prints the worst errors: sigmoid absolute, tanh absolute, tanh in ulp; then the values at the limits.
#define CUSTOMLSTM_DEVICE inline
#include "../../../csrc/cuda/device/fast_math.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace {

int exp2_ulps, reciprocal_ulps;

float moved(double exact, int ulps) {
  float y = float(exact);
  uint32_t bits;
  std::memcpy(&bits, &y, 4);
  if (y > 1e-37f && y < 1e38f) bits += uint32_t(ulps);   // never across zero or infinity
  std::memcpy(&y, &bits, 4);
  return y;
}

struct Machine {
  static float exp2(float x) { return moved(::exp2(double(x)), exp2_ulps); }
  static float reciprocal(float x) { return moved(1.0 / double(x), reciprocal_ulps); }
};

float sigmoid(float x) { return customlstm::device::fast_sigmoid<Machine>(x); }
float tangent(float x) { return customlstm::device::fast_tanh<Machine>(x); }

}  // namespace

int main(int, char** arguments) {
  const uint32_t stride = uint32_t(std::atoi(arguments[1])), largest = 0x42b20000;   // 89
  double sigmoid_error = 0, tanh_error = 0, tanh_ulps = 0;
  for (uint32_t bits = 0; bits < largest; bits += stride) {
    float size;
    std::memcpy(&size, &bits, 4);
    for (const float x : {size, -size}) {
      const double s = 1.0 / (1.0 + std::exp(-double(x))), t = std::tanh(double(x));
      const double ulp = std::ldexp(1.0, std::ilogb(std::fmax(std::fabs(t), 1.2e-38)) - 23);
      for (exp2_ulps = -2; exp2_ulps <= 2; exp2_ulps += 2) {
        for (reciprocal_ulps = -1; reciprocal_ulps <= 1; ++reciprocal_ulps) {
          sigmoid_error = std::fmax(sigmoid_error, std::fabs(double(sigmoid(x)) - s));
          const double error = std::fabs(double(tangent(x)) - t);
          tanh_error = std::fmax(tanh_error, error);
          tanh_ulps = std::fmax(tanh_ulps, error / ulp);
        }
      }
    }
  }
  std::printf("%.4g %.4g %.4g\n", sigmoid_error, tanh_error, tanh_ulps);
  for (const float x : {-INFINITY, -200.0f, -0.0f, 200.0f, INFINITY, NAN}) {
    std::printf("%g %g %g\n", double(x), double(sigmoid(x)), double(tangent(x)));
  }
}
