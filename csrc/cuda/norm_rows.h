// What the kernels of layer norm (Ba et al. 2016) share that take a row as a whole: one block of threads for one
// sequence at one step. Unit u belongs to thread u % threads through all passes over the row, so only the sums pass
// between threads.
#pragma once

#include "block.h"
#include "norm_layout.h"
#include "prepare.h"

namespace customlstm {
namespace cuda {

constexpr double kNormEpsilon = 1e-5;   // of torch.nn.LayerNorm
constexpr int kRowWarps = kRowThreads / 32;

CUSTOMLSTM_DEVICE float square_root(float x) { return ::sqrtf(x); }
CUSTOMLSTM_DEVICE double square_root(double x) { return ::sqrt(x); }

// x is normalised to (x - mean) * scale.
template <class S>
struct Norm {
  S mean, scale;

  static CUSTOMLSTM_DEVICE Norm none() { return {S(0), S(1)}; }
  CUSTOMLSTM_DEVICE S apply(S x) const { return (x - mean) * scale; }
  CUSTOMLSTM_DEVICE void set_variance(S variance) { scale = S(1) / square_root(variance + S(kNormEpsilon)); }
  CUSTOMLSTM_DEVICE bool has_variance() const { return scale < S(1) / square_root(S(kNormEpsilon)); }
  // The gradient of a value from d, that of its normalised form x times the gain. The means are those of d and of d x.
  CUSTOMLSTM_DEVICE S backward(S d, S x, S mean_d, S mean_dx) const { return (d - mean_d - x * mean_dx) * scale; }
};

// Sums over the threads of a block, always added in the same order.
template <class S>
class RowSums {
 public:
  static constexpr int kMost = 4;   // sums at a time
  static constexpr int64_t kSharedBytes = 2 * kMost * kRowWarps * int64_t(sizeof(S));

  // Replaces this thread's parts by the sums over all threads, which every thread must ask for.
  template <int N>
  CUSTOMLSTM_DEVICE void add_up(S (&parts)[N]) {
    static_assert(N <= kMost, "the shared memory holds no more");
    const device::Shared<S> shared = device::shared<S>(0, 2 * kMost * kRowWarps, "row sums");
    // Two halves take turns, so that one barrier is enough: whoever writes a half again has passed the barrier of the
    // other, and by then all have read this one.
    const int half = turn_ * kMost * kRowWarps;
    turn_ ^= 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) parts[n] += device::shuffle_xor(parts[n], mask);
    }
    if (device::lane() == 0) {
#pragma unroll
      for (int n = 0; n < N; ++n) shared.write(half + n * kRowWarps + device::warp(), parts[n]);
    }
    device::sync_block();
    const int warps = device::block_threads() / 32;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      parts[n] = shared.read(half + n * kRowWarps);
      for (int w = 1; w < warps; ++w) parts[n] += shared.read(half + n * kRowWarps + w);
    }
  }

 private:
  int turn_ = 0;
};

// The parameters of a direction in the accumulation type, by NormSlot: [D, kNormSlots, H]. A product that is not
// normalised has the gain 1.
template <class S>
struct NormParameters {
  const S* values;
  int64_t directions, hidden_size;

  CUSTOMLSTM_DEVICE S read(int direction, int slot, int64_t unit) const {
    return array(values, directions * kNormSlots * hidden_size, "norm parameters")
        .read((int64_t(direction) * kNormSlots + slot) * hidden_size + unit);
  }
};

// Where a row is: that of sequence blockIdx.x of the slice at step first_step. What else it has in common with the
// recurrence of the other cells is `recurrence`'s.
template <class ParamsT, class RecurrenceT>
struct NormRow {
  using Params = ParamsT;
  static constexpr int kThreads = kRowThreads;

  const Params& p;
  const Sizes& g;
  const RecurrenceT recurrence;
  const int column, direction;
  const int64_t s, t, b;
  int64_t row = 0;
  bool cut = false;   // a reset before the step: a zero state enters it

  CUSTOMLSTM_DEVICE explicit NormRow(const Params& params)
      : p(params),
        g(params.k.r.size),
        recurrence(params.k),
        column(recurrence.block.x),
        direction(recurrence.block.direction),
        s(params.k.r.first_step),
        t(recurrence.block.time(s)),
        b(recurrence.block.first_column + column) {}

  // Of a sequence that takes the step: finds the two that the constructor has left.
  CUSTOMLSTM_DEVICE void locate() {
    row = step_row(p.k.r, t) + b;
    cut = recurrence.block.is_cut_before(t, b);
  }
};

// Before a recurrence: fills them.
template <class M>
struct PrepareNorm {
  using T = typename M::T;
  using S = typename M::S;
  struct Params {
    struct Direction {
      const T *b_ih, *b_hh, *gain[kNormPlaces], *bias[kNormPlaces];   // or null
    } of[2];
    int64_t hidden_size, directions;
    S* to;
    int32_t grid;
  };
  static constexpr int kThreads = 256;
  static constexpr const char* kName = "customlstm prepare layer norm";

  static CUSTOMLSTM_DEVICE void run(const Params& p) {
    const int64_t width = kNormSlots * p.hidden_size, count = p.directions * width;
    const device::Global<S> to(p.to, count, "norm parameters");
    const int64_t stride = int64_t(p.grid) * device::block_threads();
    for (int64_t i = first_index(p.grid); i < count; i += stride) {
      to.write(i, value(p, p.of[i / width], i % width / p.hidden_size, i % width));
    }
  }

  // `at` among the values of a direction.
  static CUSTOMLSTM_DEVICE S value(const Params& p, const typename Params::Direction& from, int64_t slot, int64_t at) {
    const int64_t h = p.hidden_size;
    if (slot < kSlotInputGain) {
      const S own = read(from.b_ih, 4 * h, at, S(0)) + read(from.b_hh, 4 * h, at, S(0));
      return own + read(from.bias[kNormInput], 4 * h, at, S(0)) + read(from.bias[kNormRecurrent], 4 * h, at, S(0));
    }
    if (slot < kSlotRecurrentGain) return read(from.gain[kNormInput], 4 * h, at - kSlotInputGain * h, S(1));
    if (slot < kSlotCellGain) return read(from.gain[kNormRecurrent], 4 * h, at - kSlotRecurrentGain * h, S(1));
    if (slot == kSlotCellGain) return read(from.gain[kNormCell], h, at - kSlotCellGain * h, S(1));
    return read(from.bias[kNormCell], h, at - kSlotCellBias * h, S(0));
  }
  static CUSTOMLSTM_DEVICE S read(const T* from, int64_t count, int64_t i, S otherwise) {
    return from ? M::widen(array(from, count, "biases and gains").read(i)) : otherwise;
  }
};

}  // namespace cuda
}  // namespace customlstm
