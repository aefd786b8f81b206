#include "plan.h"

#include <limits>
#include <sstream>
#include <stdexcept>

#include "plan_model.h"

namespace customlstm {
namespace cuda {

namespace {

constexpr int32_t kColumnTiles[] = {1, 4};
// Fewer than 4 warps leave matrix units idle: for depths of few tiles, and where the partial sums of 4 do not fit.
constexpr int32_t kWarps[] = {4, 8, 2, 1};
constexpr int32_t kFewWarps = 2;
constexpr int32_t kClusters[] = {1, 2, 4, 8, 16};
constexpr int64_t kMostColumnBlocks = 65535;  // gridDim.y
// Larger sizes belong to no tensor that exists; below them no product of sizes here leaves 64 bits, and no number of
// blocks or columns 32.
constexpr int64_t kMostHidden = int64_t(1) << 28, kMostBatch = int64_t(1) << 44, kMostColumns = int64_t(1) << 30;
constexpr int64_t kMostClusterColumns = int64_t(1) << 20;  // their hidden states lie in shared memory

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

std::string count(int64_t n, const char* noun) { return sentence(n, ' ', noun, n == 1 ? "" : "s"); }

// The tilings of one variant, and the fastest of those that fit.
class Search {
 public:
  Search(Variant variant, const Request& request, const DeviceLimits& limits)
      : variant_(variant), request_(request), limits_(limits), model_(request, limits) {}

  void run() {
    const int64_t most_columns = round_up(std::max<int64_t>(request_.batch, 1), kTileColumns);
    for (const int32_t column_tiles : kColumnTiles) {
      if (column_tiles > 1 && request_.math == MathKind::kFma64) continue;   // no registers for more
      const int64_t chunk = kTileColumns * column_tiles;
      // Four tiles of columns for one tile of sequences only pad.
      if (column_tiles > 1 && most_columns == kTileColumns) continue;
      const int64_t most = ceil_div(most_columns, chunk);
      for (int64_t k = ceil_div(most, kMostColumnBlocks);; k += std::max<int64_t>(k / growth(), 1)) {
        const int64_t column_blocks = ceil_div(most, std::min(k, most));
        const int64_t columns = ceil_div(most, column_blocks) * chunk;  // evenly: no block gets a mere rest
        if (columns > (variant_ == Variant::kCluster ? kMostClusterColumns : kMostColumns)) break;
        units(int32_t(columns), int32_t(column_blocks), column_tiles);
        if (k >= most) break;
      }
    }
  }

  bool found() const { return best_.warps > 0; }
  const Tiling& best() const { return best_; }
  double predicted_us() const { return best_us_; }
  // The tiling that came nearest to fitting; warps is 0 where there was none.
  const Tiling& nearest() const { return nearest_; }
  SharedLayout layout(const Tiling& t) const {
    return request_.backward ? backward_shared(t, request_.hidden_size, request_.state_size, request_.projection,
                                               request_.math)
                             : forward_shared(t, request_.hidden_size, request_.state_size, request_.projection,
                                              request_.math);
  }

 private:
  // Units a block, for these columns.
  void units(int32_t columns, int32_t column_blocks, int32_t column_tiles) {
    const int64_t hidden = request_.hidden_size;
    if (variant_ == Variant::kCluster) {
      // Hidden states travel in whole tiles.
      const int64_t whole = std::max(multiple(), tile_depth(request_.math));
      for (const int32_t cluster : kClusters) {
        if (cluster > limits_.cluster_blocks) break;
        const int64_t units = round_up(ceil_div(hidden, cluster), whole);
        if (cluster > 1 && units * (cluster / 2) >= hidden) break;  // half of the blocks would own nothing
        warps(cut(units, cluster, columns, column_blocks, column_tiles));
      }
      return;
    }
    int64_t least = multiple();
    if (variant_ == Variant::kGrid) {
      const int64_t most_blocks = limits_.multiprocessors / (column_blocks * request_.directions);
      if (most_blocks == 0) return;
      least = round_up(ceil_div(hidden, most_blocks), multiple());
    }
    int64_t last = 0;
    for (int64_t units = least;; units = round_up(units + units / (2 * growth()) + 1, multiple())) {
      const int64_t unit_blocks = ceil_div(hidden, std::min(units, round_up(hidden, multiple())));
      if (unit_blocks == last) break;  // all in one block already
      const int64_t even = round_up(ceil_div(hidden, unit_blocks), multiple());
      last = unit_blocks;
      if (!warps(cut(even, unit_blocks, columns, column_blocks, column_tiles)) || unit_blocks == 1) break;
    }
  }

  // The rows of a block's product are whole tiles: backward its units, forward all gates of them.
  int32_t multiple() const { return request_.backward || request_.gates % 2 != 0 ? kTileRows : kTileRows / 2; }
  // Coarser sizes for step, which has no resident weights to fit.
  int64_t growth() const { return variant_ == Variant::kStep ? 1 : 2; }

  Tiling cut(int64_t units, int64_t unit_blocks, int32_t columns, int32_t column_blocks, int32_t column_tiles) const {
    Tiling t = {};
    t.variant = variant_;
    t.units = int32_t(units);
    t.state_rows = request_.projection ? int32_t(round_up(ceil_div(request_.state_size, unit_blocks), kTileRows)) : 0;
    t.columns = columns;
    t.column_tiles = column_tiles;
    t.unit_blocks = int32_t(unit_blocks);
    t.column_blocks = column_blocks;
    t.cluster = variant_ == Variant::kCluster ? t.unit_blocks : 1;
    t.gates = request_.gates;
    return t;
  }

  // Tries `t` with every number of warps that fits. False where there is none.
  bool warps(Tiling t) {
    // A warp without a tile of the depth would add zeros.
    const int64_t state = padded_depth(request_.state_size, request_.math) / tile_depth(request_.math);
    const int64_t hidden = padded_depth(request_.hidden_size, request_.math) / tile_depth(request_.math);
    const int64_t first = request_.backward ? request_.gates * hidden : state;
    const int64_t second = request_.backward ? state : hidden;
    const int64_t depth_tiles = request_.projection ? std::min(first, second) : first;
    bool fits = false;
    for (const int32_t warps : kWarps) {
      if (warps > depth_tiles || (fits && warps <= kFewWarps)) continue;
      t.warps = warps;
      const int64_t bytes = layout(t).total;
      if (bytes < nearest_bytes_) {
        nearest_bytes_ = bytes;
        nearest_ = t;
      }
      if (bytes > limits_.shared_bytes) continue;
      fits = true;
      const double us = model_.predicted_us(t, bytes);
      if (us < best_us_) {
        best_us_ = us;
        best_ = t;
      }
    }
    return fits;
  }

  const Variant variant_;
  const Request& request_;
  const DeviceLimits& limits_;
  const TimeModel model_;
  Tiling best_ = {}, nearest_ = {};
  double best_us_ = std::numeric_limits<double>::infinity();
  int64_t nearest_bytes_ = std::numeric_limits<int64_t>::max();
};

// Bytes of the recurrent weights and of the projection's, all directions, without padding.
int64_t weight_bytes(const Request& r) {
  const int64_t values = r.gates * r.hidden_size * r.state_size + (r.projection ? r.hidden_size * r.state_size : 0);
  return r.directions * values * operand_bytes(r.math);
}

std::string of_sizes(const Request& r) {
  return sentence("hidden size ", r.hidden_size, r.gates != 4 ? sentence(" of ", count(r.gates, "gate")) : "",
                  r.projection ? sentence(" projected to ", r.state_size) : "",
                  r.directions > 1 ? sentence(" in ", r.directions, " directions") : "");
}

// Why the blocks of no tiling get along with their shared memory.
std::string why_too_large(const Search& search, const Request& request, const DeviceLimits& limits) {
  const Tiling& t = search.nearest();
  if (t.warps == 0) return sentence("a batch of ", request.batch, " sequences cannot be cut into its blocks");
  const SharedLayout at = search.layout(t);
  const int64_t exchange = at.total - at.exchange;
  return sentence(of_sizes(request), " in ", count(t.unit_blocks, "block"), " of ", count(t.units, "unit"),
                  " needs at least ", at.total, " bytes of shared memory a block (weights ", at.exchange - at.weights,
                  ", partial sums ", at.weights, exchange ? sentence(", hidden states ", exchange) : "",
                  "), a block can have ", limits.shared_bytes);
}

// Reasons that hold for every tiling; empty where there is none.
std::string why_step_only(const Request& request) {
  if (request.math == MathKind::kFma64) return "float64 runs with step only";
  if (request.normalised) return "layer norm runs with step only: its sums over a row would cost an exchange each";
  return "";
}

std::string why_not_grid(const Request& request, const DeviceLimits& limits) {
  if (std::string why = why_step_only(request); !why.empty()) return why;
  if (!limits.cooperative) return "the device has no cooperative launch, so its blocks cannot wait for one another";
  if (limits.multiprocessors < request.directions) {
    return sentence(count(request.directions, "direction"), " need as many multiprocessors, there is ",
                    limits.multiprocessors);
  }
  const int64_t needed = weight_bytes(request), held = int64_t(limits.multiprocessors) * limits.shared_bytes;
  if (needed > held) {
    return sentence("the recurrent weights of ", of_sizes(request), " need ", needed, " bytes, ",
                    count(limits.multiprocessors, "multiprocessor"), " hold ", held, " in shared memory");
  }
  return "";
}

std::string why_not_cluster(const Request& request, const DeviceLimits& limits) {
  if (std::string why = why_step_only(request); !why.empty()) return why;
  if (limits.capability < 90) {
    return sentence("the device has compute capability ", limits.capability / 10, ".", limits.capability % 10,
                    ", clusters of thread blocks need 9.0");
  }
  if (limits.cluster_blocks < 1 || limits.clusters < 1) {
    return sentence("the device can hold ", count(limits.clusters, "cluster"), " of ", limits.cluster_blocks,
                    " blocks");
  }
  return "";
}

void check(const Request& r) {
  const bool sizes = r.hidden_size >= 1 && r.hidden_size <= kMostHidden && r.state_size >= 1 &&
                     r.state_size <= kMostHidden && r.batch >= 0 && r.batch <= kMostBatch && r.steps >= 0;
  const bool cell = r.gates >= 1 && r.gates <= kMaxGates;
  if (!sizes || !cell || r.directions < 1 || r.directions > 2 || (!r.projection && r.state_size != r.hidden_size)) {
    throw std::runtime_error(sentence("customlstm: no launch plan for steps ", r.steps, ", batch ", r.batch,
                                      ", hidden size ", r.hidden_size, ", state size ", r.state_size, ", ",
                                      count(r.directions, "direction"), ", ", count(r.gates, "gate")));
  }
}

}  // namespace

LaunchPlan plan_layer(const Request& request, const DeviceLimits& limits, int32_t forced) {
  check(request);
  LaunchPlan plan = {};
  bool chosen = false;
  for (int32_t v = 0; v < kVariants; ++v) {
    const Variant variant = Variant(v);
    std::string& why = plan.why_not[v];
    if (variant == Variant::kGrid) why = why_not_grid(request, limits);
    if (variant == Variant::kCluster) why = why_not_cluster(request, limits);
    if (why.empty()) {
      Search search(variant, request, limits);
      search.run();
      if (!search.found()) {
        why = why_too_large(search, request, limits);
      } else if (forced == v || (forced < 0 && (!chosen || search.predicted_us() < plan.predicted_us))) {
        chosen = true;
        plan.tiling = search.best();
        plan.predicted_us = search.predicted_us();
      }
    }
    if (!why.empty()) why = sentence(name_of(variant), ": ", why);
  }
  return plan;
}

int32_t variant_named(const char* name) {
  const std::string text = name ? name : "";
  if (text.empty()) return -1;
  for (int32_t v = 0; v < kVariants; ++v) {
    if (text == name_of(Variant(v))) return v;
  }
  throw std::runtime_error("CUSTOMLSTM_CUDA_VARIANT is \"" + text + "\", expected step, grid or cluster");
}

}  // namespace cuda
}  // namespace customlstm
