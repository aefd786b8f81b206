#include "host_clocks.h"

#include <algorithm>
#include <stdexcept>

namespace customlstm {
namespace device {
namespace host {

void Knowledge::learn_block(uint32_t block, uint32_t mark) {
  if (block_marks.size() <= block) block_marks.resize(block + 1, 0);
  block_marks[block] = std::max(block_marks[block], mark);
}

void Knowledge::learn_thread(const OfThread& news) {
  for (OfThread& old : of_threads) {
    if (old.warp != news.warp || old.lane != news.lane) continue;
    old.warp_mark = std::max(old.warp_mark, news.warp_mark);
    old.thread_mark = std::max(old.thread_mark, news.thread_mark);
    return;
  }
  of_threads.push_back(news);
}

void Knowledge::join(const Knowledge& other) {
  if (block_marks.size() < other.block_marks.size()) block_marks.resize(other.block_marks.size(), 0);
  for (size_t b = 0; b < other.block_marks.size(); ++b)
    block_marks[b] = std::max(block_marks[b], other.block_marks[b]);
  for (const OfThread& news : other.of_threads) learn_thread(news);
  // A barrier of the block since then says more than its single threads did.
  const auto surpassed = [this](const OfThread& t) {
    return t.block < block_marks.size() && block_marks[t.block] >= std::max(t.warp_mark, t.thread_mark);
  };
  of_threads.erase(std::remove_if(of_threads.begin(), of_threads.end(), surpassed), of_threads.end());
}

void Clocks::reset(uint32_t warps_a_block) {
  warps_a_block_ = warps_a_block;
  segments_.assign(1, {0, 0});   // segment 0 is none
}

Stamp Clocks::stamp(ThreadClock& thread) {
  WarpClock& warp = *thread.warp;
  const uint32_t floor = std::max(warp.mark, thread.released);
  if (thread.segment < floor) {
    if (warp.segment < floor) {
      if (next() == kMostSegments) throw std::runtime_error("host executor: the launch is too long for its race check");
      warp.segment = next();
      segments_.push_back({warp.index, warp.block->index});
    }
    thread.segment = warp.segment;
  }
  Stamp stamp;
  stamp.bits = thread.segment << 5 | thread.lane;
  return stamp;
}

bool Clocks::covers(const Knowledge& known, Stamp stamp, bool lanes, bool warps) const {
  const uint32_t block = block_of(stamp), segment = stamp.segment();
  if (block < known.block_marks.size() && segment < known.block_marks[block]) return true;
  if (warps) return false;
  const uint32_t warp = warp_of(stamp);
  for (const Knowledge::OfThread& t : known.of_threads) {
    if (t.warp != warp) continue;
    if (segment < t.warp_mark || (!lanes && t.lane == stamp.lane() && segment < t.thread_mark)) return true;
  }
  return false;
}

bool Clocks::knows(Stamp stamp, bool lanes, bool warps, const ThreadClock& thread) const {
  const WarpClock& warp = *thread.warp;
  const BlockClock& block = *warp.block;
  return (!block.known.empty() && covers(block.known, stamp, lanes, warps)) ||
         (!warp.known.empty() && covers(warp.known, stamp, lanes, warps)) ||
         (!thread.known.empty() && covers(thread.known, stamp, lanes, warps));
}

Knowledge Clocks::publish(ThreadClock& thread) {
  const WarpClock& warp = *thread.warp;
  const BlockClock& block = *warp.block;
  Knowledge all = block.known;
  all.join(warp.known);
  all.join(thread.known);
  all.learn_block(block.index, block.mark);
  // After a barrier of the block, which is the usual case, there is nothing to say about single threads.
  if (warp.mark > block.mark || thread.touched >= block.mark)
    all.learn_thread({warp.index, thread.lane, block.index, warp.mark, next()});
  thread.released = next();
  return all;
}

void Clocks::learn(ThreadClock& thread, const Knowledge& news) {
  thread.known.join(news);
  thread.warp->block->has_news = true;
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
