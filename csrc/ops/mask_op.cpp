// Random masks as an op: large ones several times as fast as torch draws, one number after the other, and for a seed the
// same on any number of threads.
//
//   draw_mask(Tensor seed, Tensor rows, int width, float rate) -> Tensor mask
//
//   seed   int64, one number, on the CPU: from torch's generator, so that torch.manual_seed decides
//   rows   [..., 0] of any dtype on the CPU: the mask's sizes but for the last. Sizes that are numbers in a compiled
//          program would make it anew for others.
//   mask   bool [..., width], True at this rate
//
// customlstm/masks.py is its face.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../cpu/kernels.h"
#include "checks.h"
#include "schema.h"
#include "threads.h"

namespace customlstm {

namespace {

constexpr int64_t kGroupsOfThread = 2048;   // fewer are not worth waking another thread

struct Drawing {
  uint64_t seed;
  uint32_t most;
  uint8_t* flags;
  int64_t count;

  static void draw(void* context, Team& team, int rank) {
    const Drawing& d = *static_cast<const Drawing*>(context);
    const int64_t groups = (d.count + kMaskGroup - 1) / kMaskGroup, each = (groups + team.size() - 1) / team.size();
    const int64_t begin = rank * each * kMaskGroup;
    if (begin < d.count) {
      kernels().draw_flags(d.seed, d.most, d.flags, begin, std::min(begin + each * kMaskGroup, d.count));
    }
  }
};

Tensor draw_mask(Tensor seed, Tensor rows, int64_t width, double rate) {
  check(seed.is_cpu() && seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
        "seed must be one int64 on the CPU, got ", name_of(seed.scalar_type()), " ", shape_of(seed), " on ",
        device_of(seed));
  check(rows.dim() >= 1, "rows must have the dimensions of the mask, got none");
  check(width >= 0, "width must be 0 or more, got ", width);
  check(rows.is_cpu(), "rows must be on the CPU, got ", device_of(rows));
  check(rate >= 0 && rate <= 1, "rate must be a number from 0 to 1, got ", rate);
  std::vector<int64_t> sizes(rows.sizes().begin(), rows.sizes().end());
  sizes.back() = width;
  Tensor mask = torch::stable::new_empty(rows, sizes, ScalarType::Bool);
  const int64_t count = mask.numel();
  if (count == 0) return mask;
  const double threshold = std::nearbyint(rate * 0x1p32);   // of the 2^32 words so many mean True
  if (threshold == 0) return torch::stable::zero_(mask);
  const uint32_t most = static_cast<uint32_t>(threshold - 1);
  const Contiguous given(seed);
  Drawing drawing = {*static_cast<const uint64_t*>(given.data()), most, static_cast<uint8_t*>(mask.mutable_data_ptr()),
                     count};
  const int64_t useful = count / (kMaskGroup * kGroupsOfThread);
  const int threads = useful <= 1 ? 1 : static_cast<int>(std::min<int64_t>(useful, available_threads()));
  run_team(threads, &Drawing::draw, &drawing);
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(customlstm, m) { m.def("draw_mask" CUSTOMLSTM_DRAW_MASK_SCHEMA); }

STABLE_TORCH_LIBRARY_IMPL(customlstm, CPU, m) { m.impl("draw_mask", TORCH_BOX(&draw_mask)); }

}  // namespace customlstm
