// Matrix products of a warp, in the fragment layouts of mma.sync (PTX ISA, "Matrix Fragments"). Products are exact in
// float32 and summed in the order of k; tensor cores round differently, within the same bounds.
#include <cstring>

#include "device.h"

namespace customlstm {
namespace device {
namespace host {

namespace {

typedef float Four __attribute__((vector_size(16)));

// With g = lane / 4 and t = lane % 4 a lane holds the sums of rows g and g + 8, columns 2t and 2t + 1.
template <int kDepth>
void multiply(const LaneArguments* const (&lanes)[32], const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  for (int g = 0; g < 8; ++g) {
    for (int half = 0; half < 2; ++half) {
      float row[8];
      for (int t = 0; t < 4; ++t) std::memcpy(row + 2 * t, static_cast<float*>(lanes[4 * g + t]->out) + 2 * half, 8);
      Four low, high;
      std::memcpy(&low, row, 16);
      std::memcpy(&high, row + 4, 16);
      for (int k = 0; k < kDepth; ++k) {
        const float x = a[g + 8 * half][k];
        const Four factor = {x, x, x, x};
        Four b_low, b_high;
        std::memcpy(&b_low, b[k], 16);
        std::memcpy(&b_high, b[k] + 4, 16);
        low += factor * b_low;
        high += factor * b_high;
      }
      std::memcpy(row, &low, 16);
      std::memcpy(row + 4, &high, 16);
      for (int t = 0; t < 4; ++t) std::memcpy(static_cast<float*>(lanes[4 * g + t]->out) + 2 * half, row + 2 * t, 8);
    }
  }
}

// Two neighbours along the depth a register: A rows g and g + 8 at k = 2t, then both at k = 2t + 8; B likewise.
template <class T>
void multiply_16(const LaneArguments* const (&lanes)[32]) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    T from_a[8], from_b[4];
    std::memcpy(from_a, lanes[lane]->in[0], sizeof(from_a));
    std::memcpy(from_b, lanes[lane]->in[1], sizeof(from_b));
    for (int i = 0; i < 8; ++i) a[g + i / 2 % 2 * 8][2 * t + i / 4 * 8 + i % 2] = to_float(from_a[i]);
    for (int i = 0; i < 4; ++i) b[2 * t + i / 2 * 8 + i % 2][g] = to_float(from_b[i]);
  }
  multiply(lanes, a, b);
}

}  // namespace

void compute_mma_bf16(const LaneArguments* const (&lanes)[32]) { multiply_16<BFloat16>(lanes); }
void compute_mma_f16(const LaneArguments* const (&lanes)[32]) { multiply_16<Half>(lanes); }

// A rows g and g + 8 at k = t, then both at k = t + 4; B at k = t and t + 4. The low 13 bits are ignored.
void compute_mma_tf32(const LaneArguments* const (&lanes)[32]) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    uint32_t from_a[4], from_b[2];
    std::memcpy(from_a, lanes[lane]->in[0], sizeof(from_a));
    std::memcpy(from_b, lanes[lane]->in[1], sizeof(from_b));
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = float_of(from_a[i] & 0xffffe000);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = float_of(from_b[i] & 0xffffe000);
  }
  multiply(lanes, a, b);
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
