// Who has seen what: the order between threads that barriers and flags make.
//
// A thread's run between two barriers is a segment; segments are numbered in the order in which they begin, and the
// lanes of a warp share one as long as they synchronize alike. A barrier sets the marks of what it joins to the number
// of the next segment: whatever its threads did in segments below the mark has been seen by all of them. What came
// through flags is kept as Knowledge: marks of other blocks, and of single threads for what a releasing thread wrote
// after the last barrier of its block.
#pragma once

#include <cstdint>
#include <vector>

namespace customlstm {
namespace device {
namespace host {

// What one access leaves behind: segment and lane.
struct Stamp {
  uint32_t bits = 0;
  uint32_t segment() const { return bits >> 5; }
  uint32_t lane() const { return bits & 31; }
  bool none() const { return bits == 0; }
  bool operator==(Stamp other) const { return bits == other.bits; }
};
constexpr uint32_t kMostSegments = 1u << 27;

struct Knowledge {
  struct OfThread {
    uint32_t warp, lane, block;
    uint32_t warp_mark, thread_mark;
  };
  std::vector<uint32_t> block_marks;   // [blocks], or shorter: zeros
  std::vector<OfThread> of_threads;

  bool empty() const { return block_marks.empty() && of_threads.empty(); }
  void clear() { block_marks.clear(), of_threads.clear(); }
  void learn_block(uint32_t block, uint32_t mark);
  void learn_thread(const OfThread& news);
  void join(const Knowledge& other);
};

struct BlockClock {
  uint32_t index = 0;      // in the grid
  uint32_t mark = 0;
  Knowledge known;
  bool has_news = false;   // a thread or warp of it knows more than `known`
};
struct WarpClock {
  BlockClock* block = nullptr;
  uint32_t index = 0;      // in the grid
  uint32_t mark = 0;
  uint32_t segment = 0;    // the newest
  Knowledge known;
};
struct ThreadClock {
  WarpClock* warp = nullptr;
  uint32_t lane = 0;
  uint32_t segment = 0;
  uint32_t touched = 0;    // the segment of its last access to data
  uint32_t released = 0;   // the number of the next segment when it last released a flag
  Knowledge known;
};

class Clocks {
 public:
  void reset(uint32_t warps_a_block);
  uint32_t warps_a_block() const { return warps_a_block_; }
  uint32_t warp_of(Stamp stamp) const { return segments_[stamp.segment()].warp; }
  uint32_t block_of(Stamp stamp) const { return segments_[stamp.segment()].block; }
  uint32_t next() const { return uint32_t(segments_.size()); }

  Stamp stamp(ThreadClock& thread);
  // Whether what bears the stamp happened before the present moment of the thread. `lanes`, `warps`: other lanes of
  // the stamp's warp, or other warps of its block, did the same, in segments not above the stamp's.
  bool ordered(Stamp stamp, bool lanes, bool warps, const ThreadClock& thread) const {
    const WarpClock& warp = *thread.warp;
    const uint32_t segment = stamp.segment(), its_warp = warp_of(stamp);
    const bool own_warp = !warps && its_warp == warp.index;
    if (own_warp && !lanes && stamp.lane() == thread.lane) return true;
    if (own_warp && segment < warp.mark) return true;
    if (segment < warp.block->mark && block_of(stamp) == warp.block->index) return true;
    return knows(stamp, lanes, warps, thread);
  }

  // What a thread publishes by a release now; later accesses of the thread are not part of it.
  Knowledge publish(ThreadClock& thread);
  void learn(ThreadClock& thread, const Knowledge& news);

 private:
  bool knows(Stamp stamp, bool lanes, bool warps, const ThreadClock& thread) const;   // through flags or the cluster
  bool covers(const Knowledge& known, Stamp stamp, bool lanes, bool warps) const;

  uint32_t warps_a_block_ = 1;
  struct Segment {
    uint32_t warp, block;
  };
  std::vector<Segment> segments_;
};

}  // namespace host
}  // namespace device
}  // namespace customlstm
