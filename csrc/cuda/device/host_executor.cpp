// The primitives below host.h: checks of accesses, flags, copies, barriers.
#include <algorithm>
#include <cstring>

#include "host_machine.h"

namespace customlstm {
namespace device {
namespace host {

namespace {

constexpr int kMostPolls = 1 << 14;

uintptr_t address_of(const Array& array, int64_t i) {
  return reinterpret_cast<uintptr_t>(array.data) + uintptr_t(i) * uintptr_t(array.element_bytes);
}

// Mostly the very same literal.
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string describe(const Array& array, int64_t i, int n) {
  std::string text = std::string(array.shared ? "shared" : "global") + " array '" + array.name + "' [" +
                     std::to_string(i) + "]";
  if (n > 1) text += ", " + std::to_string(n) + " elements";
  return text + ", of " + std::to_string(array.count);
}

}  // namespace

// --- memory

std::string Machine::here(Place place) const {
  const Fiber& f = *current_;
  return "\n  at " + text(place) + " by block (" + std::to_string(f.x) + ", " + std::to_string(f.y) + ", " +
         std::to_string(f.z) + "), thread " + std::to_string(f.thread);
}

void Machine::access(Access kind, const Array& array, int64_t i, int n, Place place) {
  if (i < 0 || n > array.count || i > array.count - n) fail("out of bounds: " + describe(array, i, n) + here(place));
  if (!array.data) fail("null pointer: " + describe(array, i, n) + here(place));
  const uintptr_t address = address_of(array, i);
  const int bytes = n * array.element_bytes;
  // Both are powers of two, and divisions are what this function would spend its time on.
  if ((i & (n - 1)) != 0 || (address & uintptr_t(std::min(bytes, 16) - 1)) != 0)
    fail("misaligned: " + describe(array, i, n) + here(place));
  races_.access(kind, array, address, bytes, current_->clock, place);
  if (kind == Access::kWrite) ++writes_;
}

Array Machine::shared_array(int64_t byte_offset, int64_t count, int32_t element_bytes, const char* name,
                            Place place) const {
  const Array array = {current_->block->memory + byte_offset, count, element_bytes, true, name};
  if (byte_offset < 0 || count < 0 || byte_offset + count * element_bytes > launch_.shared_bytes) {
    machine().fail("shared array '" + std::string(name) + "' at byte " + std::to_string(byte_offset) + " with " +
                   std::to_string(count) + " elements does not fit into " + std::to_string(launch_.shared_bytes) +
                   " bytes" + here(place));
  }
  if (byte_offset % element_bytes != 0) machine().fail("misaligned: " + describe(array, 0, 1) + here(place));
  return array;
}

Array Machine::remote_array(const Array& array, int rank, Place place) {
  Block& mine = *current_->block;
  if (rank < 0 || rank >= launch_.cluster)
    fail("write_remote to rank " + std::to_string(rank) + " of " + std::to_string(launch_.cluster) + here(place));
  Block& other = *mine.cluster->blocks[size_t(rank)];
  if (&other == &mine) return array;
  if (mine.cluster_syncs == 0)
    fail("write_remote before the first sync_cluster: the other block may not have begun" + here(place));
  if (other.ended > 0) fail("write_remote to a block that ends" + here(place) + where(other));
  other.remote_writes = true;
  other.remote_place = place;
  Array there = array;
  there.data = other.memory + (static_cast<const unsigned char*>(array.data) - mine.memory);
  return there;
}

void Machine::release(const Array& flags, int64_t i, uint32_t value, Place place) {
  access(Access::kRelease, flags, i, 1, place);
  const uintptr_t address = address_of(flags, i);
  races_.release(address, current_->clock);
  std::memcpy(reinterpret_cast<void*>(address), &value, sizeof(value));
  ++writes_;
  rounds_ = 0;
  maybe_yield(4);
}

uint32_t Machine::acquire(const Array& flags, int64_t i, Place place) {
  maybe_yield(8);
  if (++current_->polls > kMostPolls) fail("a loop around acquire without pause()" + here(place));
  access(Access::kAcquire, flags, i, 1, place);
  const uintptr_t address = address_of(flags, i);
  races_.acquire(address, current_->clock);
  uint32_t value;
  std::memcpy(&value, reinterpret_cast<const void*>(address), sizeof(value));
  return value;
}

// The source is read twice in the eyes of the race check: it must stay as it is until the copy is done. Copies of 16
// bytes go past the cache in which a stale value could lie.
void Machine::copy_start(const Copy& copy) {
  access(Access::kCopyStart, copy.to, copy.i, copy.bytes / copy.to.element_bytes, copy.place);
  access(copy.bytes == 16 ? Access::kReadFresh : Access::kRead, copy.from, copy.j,
         copy.bytes / copy.from.element_bytes, copy.place);
  current_->copies.push_back(copy);
  current_->copies.back().group = current_->commits;
}

// The data lands only here, so that without the wait it is not there.
void Machine::copy_wait(int pending) {
  std::vector<Copy>& copies = current_->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group + pending < current_->commits; ++done) {
    const Copy& copy = copies[done];
    access(Access::kCopyEnd, copy.to, copy.i, copy.bytes / copy.to.element_bytes, copy.place);
    access(Access::kReadFresh, copy.from, copy.j, copy.bytes / copy.from.element_bytes, copy.place);
    std::memcpy(reinterpret_cast<void*>(address_of(copy.to, copy.i)),
                reinterpret_cast<const void*>(address_of(copy.from, copy.j)), size_t(copy.bytes));
    ++writes_;
  }
  copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(done));
}

// --- barriers

// Everybody must come to the same call: other threads of the warp or block that wait elsewhere or have ended will not.
void Machine::arrive(Fiber& fiber, State state, const char* what, Place place) {
  fiber.state = state;
  fiber.waits_in = what;
  fiber.place = place;
  fiber.polls = 0;
  const Block& block = *fiber.block;
  Warp& warp = *fiber.warp_state;
  const bool wide = state != State::kInWarp;
  if (wide ? block.ended > 0 : warp.ended > 0)
    fail(std::string(what) + " cannot be completed: threads have ended" + where(block));
  if (wide ? warp.meeting.waiting > 0 : warp.waiting_wide > 0)
    fail(std::string(what) + " cannot be completed: threads of one warp wait in different places" + where(block));
  warp.waiting_wide += wide;
}

void Machine::meet(Meeting& meeting, const char* what, Place place, const Block& block) {
  if (meeting.waiting++ == 0) {
    meeting.what = what;
    meeting.place = place;
  } else if (!same(meeting.what, what) || meeting.place.line != place.line || !same(meeting.place.file, place.file)) {
    std::string text = std::string(what) + " cannot be completed: threads wait in different places";
    if (&meeting != &block.cluster->meeting) fail(text + where(block));
    for (const Block* b : block.cluster->blocks) text += where(*b);
    fail(std::move(text));
  }
}

void Machine::warp_wide(const char* what, const LaneArguments& mine, WarpCompute compute, Place place) {
  Fiber& fiber = *current_;
  Warp& warp = *fiber.warp_state;
  arrive(fiber, State::kInWarp, what, place);
  fiber.arguments = &mine;
  meet(warp.meeting, what, place, *fiber.block);
  if (warp.meeting.waiting < 32) return suspend();

  warp.meeting.waiting = 0;
  Fiber* lanes = &fiber.block->fibers[size_t(fiber.thread / 32 * 32)];
  if (compute) {
    const LaneArguments* all[32];
    for (int i = 0; i < 32; ++i) all[i] = lanes[i].arguments;
    compute(all);
  } else {
    warp.clock.mark = races_.clocks.next();
    for (int i = 0; i < 32; ++i) {
      if (lanes[i].clock.known.empty()) continue;
      warp.clock.known.join(lanes[i].clock.known);
      lanes[i].clock.known.clear();
    }
  }
  ++writes_;
  for (int i = 0; i < 32; ++i) make_ready(lanes[i]);
  if (random_->below(8) == 0) return suspend();
  take(fiber);
}

// All that a thread of the block knows, the whole block knows now.
void Machine::join_block(Block& block) {
  const uint32_t mark = races_.clocks.next();
  BlockClock& clock = block.clock;
  clock.mark = mark;
  for (Warp& warp : block.warps) {
    warp.clock.mark = mark;
    if (!clock.has_news) continue;
    clock.known.join(warp.clock.known);
    warp.clock.known.clear();
  }
  if (!clock.has_news) return;
  for (Fiber& fiber : block.fibers) {
    if (fiber.clock.known.empty()) continue;
    clock.known.join(fiber.clock.known);
    fiber.clock.known.clear();
  }
  clock.has_news = false;
}

void Machine::join_cluster(Cluster& cluster) {
  Knowledge all;
  for (Block* block : cluster.blocks) {
    join_block(*block);
    all.join(block->clock.known);
    all.learn_block(block->clock.index, block->clock.mark);
  }
  for (Block* block : cluster.blocks) {
    block->clock.known = all;
    block->remote_writes = false;
    ++block->cluster_syncs;
  }
}

void Machine::block_barrier(bool of_cluster, Place place) {
  Fiber& fiber = *current_;
  Block& block = *fiber.block;
  Cluster& cluster = *block.cluster;
  const char* what = of_cluster ? "sync_cluster" : "sync_block";
  arrive(fiber, of_cluster ? State::kInCluster : State::kInBlock, what, place);
  meet(block.meeting, what, place, block);
  if (of_cluster) {
    for (const Block* other : cluster.blocks)
      if (other->ended > 0) fail("sync_cluster cannot be completed: threads have ended" + where(*other) + here(place));
    meet(cluster.meeting, what, place, block);
    if (cluster.meeting.waiting < launch_.threads * launch_.cluster) return suspend();
    cluster.meeting.waiting = 0;
    join_cluster(cluster);
    for (Block* other : cluster.blocks) wake_block(*other);
  } else {
    if (block.meeting.waiting < launch_.threads) return suspend();
    join_block(block);
    wake_block(block);
  }
  ++writes_;
  if (random_->below(2) == 0) return suspend();
  take(fiber);
}

void Machine::wake_block(Block& block) {
  block.meeting.waiting = 0;
  for (Warp& warp : block.warps) warp.waiting_wide = 0;
  for (Fiber& fiber : block.fibers) make_ready(fiber);
}

// --- what host.h calls

void access(Access kind, const Array& array, int64_t i, int n, Place place) {
  machine().access(kind, array, i, n, place);
}
Array shared_array(int64_t byte_offset, int64_t count, int32_t element_bytes, const char* name, Place place) {
  return machine().shared_array(byte_offset, count, element_bytes, name, place);
}
Array remote_array(const Array& array, int rank, Place place) { return machine().remote_array(array, rank, place); }
void release(const Array& flags, int64_t i, uint32_t value, Place place) {
  machine().release(flags, i, value, place);
}
uint32_t acquire(const Array& flags, int64_t i, Place place) { return machine().acquire(flags, i, place); }
void pause(Place place) { machine().spin(place); }
void copy_start(const Array& to, int64_t i, const Array& from, int64_t j, int bytes, Place place) {
  machine().copy_start({to, from, i, j, bytes, 0, place});
}
void copy_commit() { machine().copy_commit(); }
void copy_wait(int pending) { machine().copy_wait(pending); }
void sync_block(Place place) { machine().block_barrier(false, place); }
void sync_cluster(Place place) { machine().block_barrier(true, place); }
void warp_wide(const char* what, const LaneArguments& mine, WarpCompute compute, Place place) {
  machine().warp_wide(what, mine, compute, place);
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
