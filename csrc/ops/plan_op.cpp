// The launch plan as an op, also in builds without CUDA: so that it is tested, and explained, on any machine.
//
//   cuda_plan(int[] request, int[] limits, int forced) -> (int[], str, float)
//
//   request  steps, batch, hidden_size, state_size, directions, projection, backward, ragged, math, gates, layer norm
//            math: 0 float32 by multiply-adds, 1 float64, 2 bfloat16, 3 float16, 4 TF32
//            gates: of the cell
//   limits   capability, multiprocessors, shared_bytes, l2_bytes, cluster_blocks, clusters, cooperative
//   forced   -1, or a variant: 0 step, 1 grid, 2 cluster
//   results  the tiling: variant, units, state_rows, columns, column_tiles, warps, unit_blocks, column_blocks, cluster;
//            all 0 where the forced variant does not fit
//            why not step, why not grid, why not cluster: three lines, empty for a variant that fits
//            predicted time of all steps in microseconds
//
// customlstm/launch_plan.py is its face.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../cuda/plan.h"
#include "checks.h"

namespace customlstm {

namespace {

constexpr size_t kRequestFields = 11, kLimitFields = 7;

int32_t narrow(const char* name, int64_t value) {
  check(value >= 0 && value <= INT32_MAX, "limits: ", name, " is ", value, ", expected 0 to ", INT32_MAX);
  return static_cast<int32_t>(value);
}

std::tuple<std::vector<int64_t>, std::string, double> cuda_plan(std::vector<int64_t> request,
                                                                std::vector<int64_t> limits, int64_t forced) {
  check(request.size() == kRequestFields, "request has ", request.size(), " numbers, expected ", kRequestFields);
  check(limits.size() == kLimitFields, "limits has ", limits.size(), " numbers, expected ", kLimitFields);
  check(request[8] >= 0 && request[8] < cuda::kMathKinds, "request: math is ", request[8], ", expected 0 to ",
        cuda::kMathKinds - 1);
  check(request[9] >= 1 && request[9] <= kMaxGates, "request: gates is ", request[9], ", expected 1 to ", kMaxGates);
  check(forced >= -1 && forced < cuda::kVariants, "forced is ", forced, ", expected -1 to ", cuda::kVariants - 1);
  const cuda::Request wanted = {request[0],      request[1],      request[2],
                                request[3],      request[4],      request[5] != 0,
                                request[6] != 0, request[7] != 0, static_cast<cuda::MathKind>(request[8]),
                                static_cast<int32_t>(request[9]), request[10] != 0};
  const cuda::DeviceLimits device = {narrow("capability", limits[0]),
                                     narrow("multiprocessors", limits[1]),
                                     narrow("shared_bytes", limits[2]),
                                     limits[3],
                                     narrow("cluster_blocks", limits[4]),
                                     narrow("clusters", limits[5]),
                                     limits[6] != 0};
  check(device.multiprocessors > 0, "limits: multiprocessors is 0");
  const cuda::LaunchPlan plan = cuda::plan_layer(wanted, device, static_cast<int32_t>(forced));
  const cuda::Tiling& t = plan.tiling;
  std::string why_not = plan.why_not[0];
  for (int32_t v = 1; v < cuda::kVariants; ++v) why_not += "\n" + plan.why_not[v];
  return {{static_cast<int64_t>(t.variant), t.units, t.state_rows, t.columns, t.column_tiles, t.warps, t.unit_blocks,
           t.column_blocks, t.cluster},
          why_not,
          plan.predicted_us};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(customlstm, m) {
  m.def("cuda_plan(int[] request, int[] limits, int forced) -> (int[], str, float)");
}

STABLE_TORCH_LIBRARY_IMPL(customlstm, CompositeExplicitAutograd, m) { m.impl("cuda_plan", TORCH_BOX(&cuda_plan)); }

}  // namespace customlstm
