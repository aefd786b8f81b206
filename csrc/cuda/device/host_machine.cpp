// Launching: blocks come and go, threads begin and end.
#include "host_machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

namespace customlstm {
namespace device {
namespace host {

const Position* self = nullptr;

namespace {

constexpr int64_t kMostSharedBytes = 227 * 1024;   // of a block, on the largest GPU yet
constexpr int kMostThreads = 1024, kMostCluster = 16;
constexpr int64_t kMostResidentThreads = 65536;
constexpr int kFewThreads = 4096, kFewBlocks = 8;  // resident where nothing demands more
// Stacks that wait for the next launch. Each is two of the 65,530 maps of memory that Linux gives a process
// (vm.max_map_count), which the machines of all libraries in it share; without one, no thread can be started any more.
constexpr size_t kKeptStacks = kFewThreads;

Machine the_machine;

size_t round_to_pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

Machine& machine() { return the_machine; }

void run(const KernelInfo& kernel, const cuda::Launch& launch, const void* params, uint64_t seed, Random& random) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  machine().run(kernel, launch, params, seed, random);
}

void fail(std::string text) { machine().fail(std::move(text)); }

Block::~Block() { std::free(memory); }

void Machine::check_launch(const KernelInfo& kernel, const cuda::Launch& launch) const {
  const auto demand = [&](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(std::string("host executor: launch of ") + kernel.name + " refused: " + what);
  };
  demand(launch.grid_x > 0 && launch.grid_y > 0 && launch.grid_z > 0, "a grid without blocks");
  demand(launch.grid_y <= 65535 && launch.grid_z <= 65535, "a grid too large in y or z");
  demand(launch.threads > 0 && launch.threads % 32 == 0, "threads are not a multiple of 32");
  demand(launch.threads <= kernel.most_threads && launch.threads <= kMostThreads, "too many threads a block");
  demand(launch.shared_bytes >= 0 && launch.shared_bytes <= kMostSharedBytes, "too much shared memory");
  demand(launch.cluster >= 1 && launch.cluster <= kMostCluster, "a cluster has 1 to 16 blocks");
  demand(launch.grid_x % launch.cluster == 0, "the grid is not made of whole clusters");
  const int64_t blocks = int64_t(launch.grid_x) * launch.grid_y * launch.grid_z;
  demand(blocks <= INT32_MAX / 32, "too many blocks");
  demand(!launch.cooperative || blocks * launch.threads <= kMostResidentThreads,
         "cooperative, with more threads than can be resident");
}

void Machine::run(const KernelInfo& kernel, const cuda::Launch& launch, const void* params, uint64_t seed,
                  Random& random) {
  check_launch(kernel, launch);
  kernel_ = kernel;
  launch_ = launch;
  params_ = params;
  seed_ = seed;
  random_ = &random;
  failed_ = false;
  writes_ = writes_seen_ = 0;
  idle_rounds_ = rounds_ = 0;
  left_ = 0;
  races_.start_launch(uint32_t(launch.threads / 32), launch.grid_x, launch.grid_y);
  choose_blocks();

  while (!failed_) {
    while (clusters_.size() < most_resident_ && !waiting_clusters_.empty()) {
      start_cluster(waiting_clusters_.back());
      waiting_clusters_.pop_back();
    }
    if (clusters_.empty()) break;
    Fiber* next = pick();
    if (next) {
      current_ = next;
      self = next;
      switch_to(main_, next->context);
      retire_clusters();
    } else {
      failed_ = true;
      error_ = deadlock();
    }
  }

  end_launch();
  if (failed_) {
    throw std::runtime_error(std::string("host executor, kernel '") + kernel.name + "', seed " +
                             std::to_string(seed) + ": " + error_);
  }
}

// A launch that is not cooperative must not count on any two clusters being resident at the same time, so never are
// all of them, if there are several.
void Machine::choose_blocks() {
  const int total = launch_.grid_x / launch_.cluster * launch_.grid_y * launch_.grid_z;
  waiting_clusters_.resize(size_t(total));
  for (int i = 0; i < total; ++i) waiting_clusters_[i] = total - 1 - i;
  if (random_->below(4) != 0) {
    for (int i = total - 1; i > 0; --i) std::swap(waiting_clusters_[i], waiting_clusters_[random_->below(i + 1)]);
  }
  const int few = std::min({total - 1, kFewBlocks, kFewThreads / (launch_.threads * launch_.cluster)});
  most_resident_ = launch_.cooperative ? total : few <= 1 ? 1 : 1 + random_->below(few);
}

void Machine::start_cluster(int number) {
  clusters_.emplace_back(new Cluster);
  Cluster& cluster = *clusters_.back();
  for (int rank = 0; rank < launch_.cluster; ++rank) {
    if (free_blocks_.empty()) free_blocks_.emplace_back(new Block);
    blocks_.push_back(std::move(free_blocks_.back()));
    free_blocks_.pop_back();
    cluster.blocks.push_back(blocks_.back().get());
    start_block(*blocks_.back(), number * launch_.cluster + rank, cluster);
  }
}

void Machine::start_block(Block& block, int number, Cluster& cluster) {
  block.number = number;
  block.ready_warps = 0;
  block.ready_at = -1;
  block.meeting = Meeting();
  block.ended = block.cluster_syncs = 0;
  block.remote_writes = false;
  block.cluster = &cluster;
  block.clock = BlockClock();
  block.clock.index = uint32_t(number);
  block.clock.mark = races_.clocks.next();

  const size_t bytes = std::max(kPageBytes, round_to_pages(size_t(launch_.shared_bytes)));
  if (block.memory_bytes < bytes) {
    std::free(block.memory);
    block.memory_bytes = 0;
    block.memory = static_cast<unsigned char*>(std::aligned_alloc(kPageBytes, bytes));
    if (!block.memory) throw std::bad_alloc();
    block.memory_bytes = bytes;
  }
  std::memset(block.memory, 0xff, bytes);   // NaN in every format
  races_.start_shared(block.memory, size_t(launch_.shared_bytes));

  const int threads = launch_.threads;
  for (size_t i = size_t(threads); i < block.fibers.size(); ++i) stacks_.put(block.fibers[i].stack);
  block.fibers.resize(size_t(threads));
  block.warps.assign(size_t(threads / 32), Warp());
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    warp.block = &block;
    warp.clock.block = &block.clock;
    warp.clock.index = uint32_t(size_t(number) * block.warps.size() + w);
    warp.clock.mark = block.clock.mark;
  }
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = block.fibers[t];
    if (!fiber.stack) fiber.stack = stacks_.get();
    fiber.thread = t;
    fiber.threads = threads;
    fiber.x = number % launch_.grid_x;
    fiber.y = number / launch_.grid_x % launch_.grid_y;
    fiber.z = number / launch_.grid_x / launch_.grid_y;
    fiber.cluster_rank = number % launch_.cluster;
    fiber.cluster_size = launch_.cluster;
    fiber.block = &block;
    fiber.warp_state = &block.warps[t / 32];
    fiber.clock = ThreadClock();
    fiber.clock.warp = &fiber.warp_state->clock;
    fiber.clock.lane = uint32_t(t % 32);
    fiber.copies.clear();
    fiber.commits = fiber.polls = 0;
    prepare(fiber.context, fiber.stack, fiber_main);
    make_ready(fiber);
  }
}

void Machine::fiber_main() {
  Machine& m = machine();
  std::string thrown;
  // The report is made outside of the handler: a fiber that leaves one for good would stay the thread's exception.
  try {
    m.kernel_.body(m.params_);
  } catch (const std::exception& e) {
    thrown = e.what();
  }
  if (!thrown.empty()) m.fail(std::move(thrown));
  m.thread_ends();
}

void Machine::thread_ends() {
  Fiber& fiber = *current_;
  Block& block = *fiber.block;
  Warp& warp = *fiber.warp_state;
  fiber.state = State::kEnded;
  if (!fiber.copies.empty())
    fail("a thread ends without copy_wait for its copy_async at " + text(fiber.copies.front().place) + where(block));
  if (block.remote_writes)
    fail("a thread ends, but its block has got a write_remote since the last sync_cluster, at " +
         text(block.remote_place) + where(block));
  ++warp.ended;
  ++block.ended;
  if (warp.meeting.waiting > 0 || block.meeting.waiting > 0)
    fail("a thread ends while others wait for it" + where(block));
  if (block.cluster->meeting.waiting > 0) {
    std::string text = "a thread ends while its cluster waits for it";
    for (const Block* b : block.cluster->blocks) text += where(*b);
    fail(std::move(text));
  }
  ++writes_;
  rounds_ = 0;
  bool all = true;
  for (const Block* b : block.cluster->blocks) all = all && b->ended == launch_.threads;
  Fiber* next = all ? nullptr : pick();
  current_ = next;
  self = next;
  switch_to(fiber.context, next ? next->context : main_);
}

void Machine::retire_clusters() {
  for (size_t c = 0; c < clusters_.size();) {
    bool all = true;
    for (const Block* b : clusters_[c]->blocks) all = all && b->ended == launch_.threads;
    if (!all) {
      ++c;
      continue;
    }
    for (Block* gone : clusters_[c]->blocks) {
      if (followed_ == gone) followed_ = nullptr;
      if (spared_ == gone) spared_ = nullptr;
      const auto at = std::find_if(blocks_.begin(), blocks_.end(),
                                   [gone](const std::unique_ptr<Block>& b) { return b.get() == gone; });
      free_blocks_.push_back(std::move(*at));
      blocks_.erase(at);
    }
    clusters_.erase(clusters_.begin() + std::ptrdiff_t(c));
  }
}

// Fibers that have not ended are abandoned: kernels own nothing that would have to be given back.
void Machine::end_launch() {
  for (std::unique_ptr<Block>& block : blocks_) free_blocks_.push_back(std::move(block));
  blocks_.clear();
  clusters_.clear();
  ready_.clear();
  spinners_.clear();
  waiting_clusters_.clear();
  followed_ = spared_ = nullptr;
  current_ = nullptr;
  self = nullptr;
  if (stacks_.made() <= kKeptStacks) return;
  for (std::unique_ptr<Block>& block : free_blocks_) {
    for (Fiber& fiber : block->fibers) discard(fiber.context);
  }
  free_blocks_.clear();
  stacks_.clear();
}

void Machine::fail(std::string text) {
  failed_ = true;
  error_ = std::move(text);
  Context abandoned = current_->context;
  switch_to(abandoned, main_);
  std::abort();   // nobody goes on with a fiber that has failed
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
