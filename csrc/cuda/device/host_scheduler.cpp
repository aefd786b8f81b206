// Who runs next, and what is said when nobody can.
#include <algorithm>
#include <map>

#include "host_machine.h"

namespace customlstm {
namespace device {
namespace host {

namespace {

constexpr uint32_t kOftenWoken = 64;      // one pick in so many lets a spinning thread look again early
constexpr int kIdleRounds = 2;            // rounds of all spinning threads in which nothing was written
constexpr int kFutileRounds = 20000;      // rounds in which things were written, but no flag released
constexpr int kListedBlocks = 6;

// A set bit of `mask`, which is not 0, beginning at a random one.
int some_bit(uint32_t mask, uint32_t random) {
  const uint32_t n = random & 31, turned = n ? mask >> n | mask << (32 - n) : mask;
  return int((uint32_t(__builtin_ctz(turned)) + n) & 31);
}

std::string ranges(const std::vector<int>& threads) {
  std::string text;
  for (size_t i = 0; i < threads.size();) {
    size_t end = i;
    while (end + 1 < threads.size() && threads[end + 1] == threads[end] + 1) ++end;
    text += (i ? ", " : "") + std::to_string(threads[i]);
    if (end > i) text += "-" + std::to_string(threads[end]);
    i = end + 1;
  }
  return text;
}

}  // namespace

void Machine::make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  Block& block = *fiber.block;
  if (block.ready_warps == 0) {
    block.ready_at = int(ready_.size());
    ready_.push_back(&block);
  }
  block.ready_warps |= 1u << (fiber.thread / 32);
  fiber.warp_state->ready |= 1u << fiber.lane();
}

void Machine::take(Fiber& fiber) {
  Block& block = *fiber.block;
  fiber.warp_state->ready &= ~(1u << fiber.lane());
  if (fiber.warp_state->ready != 0) return;
  block.ready_warps &= ~(1u << (fiber.thread / 32));
  if (block.ready_warps != 0) return;
  ready_[block.ready_at] = ready_.back();
  ready_[block.ready_at]->ready_at = block.ready_at;
  ready_.pop_back();
  block.ready_at = -1;
}

// Uniformly random schedules are all alike: everybody advances at the same pace. Real ones run one warp far ahead, or
// leave one behind. So the scheduler has habits, and changes them at random, after few picks or many, measured by how
// many threads there are. To stay with one block is also kind to the caches.
void Machine::new_habit() {
  const uint32_t threads = uint32_t(blocks_.size()) * uint32_t(launch_.threads);
  left_ = 1 + int(random_->below(threads * (random_->below(3) == 0 ? 1 : 16)));
  const uint32_t n = random_->below(8);
  habit_ = n < 3 ? Habit::kWarp : n < 5 ? Habit::kBlock : n < 7 ? Habit::kSparing : Habit::kAnyone;
  lane_order_ = int(random_->below(3));
  followed_ = nullptr;
  spared_ = habit_ == Habit::kSparing ? ready_[random_->below(uint32_t(ready_.size()))] : nullptr;
  spared_warp_ = spared_ ? some_bit(spared_->ready_warps, uint32_t(random_->next() >> 40)) : 0;
}

Fiber* Machine::pick() {
  if (ready_.empty() && !wake_spinners()) return nullptr;
  const uint64_t random = random_->next() >> 8;
  if (!spinners_.empty() && random % kOftenWoken == 0) {
    Fiber*& chosen = spinners_[random_->below(uint32_t(spinners_.size()))];
    make_ready(*chosen);
    chosen = spinners_.back();
    spinners_.pop_back();
  }
  if (left_-- <= 0) new_habit();

  Block* block = habit_ == Habit::kAnyone ? nullptr : followed_;
  if (!block || block->ready_at < 0 || block == spared_) {
    const uint32_t at = uint32_t((random >> 24 & 0xffff) * ready_.size() >> 16);
    block = ready_[at];
    if (block == spared_) block = ready_[(at + 1) % ready_.size()];
    followed_ = block;
  }
  uint32_t warps = block->ready_warps;
  if (block == spared_ && warps != 1u << spared_warp_) warps &= ~(1u << spared_warp_);
  int w = followed_warp_;
  if (habit_ != Habit::kWarp || !(warps >> w & 1)) w = some_bit(warps, uint32_t(random >> 8));
  followed_warp_ = w;

  const uint32_t lanes = block->warps[w].ready;
  const int lane = lane_order_ == 0   ? some_bit(lanes, uint32_t(random >> 16))
                   : lane_order_ == 1 ? __builtin_ctz(lanes)
                                      : 31 - __builtin_clz(lanes);
  Fiber& fiber = block->fibers[w * 32 + lane];
  take(fiber);
  return &fiber;
}

// All spinning threads look again, unless nothing has changed since they did.
bool Machine::wake_spinners() {
  if (spinners_.empty() || ++rounds_ > kFutileRounds) return false;
  if (writes_ != writes_seen_) idle_rounds_ = 0;
  else if (++idle_rounds_ > kIdleRounds) return false;
  writes_seen_ = writes_;
  for (Fiber* fiber : spinners_) make_ready(*fiber);
  spinners_.clear();
  return true;
}

void Machine::suspend() {
  Fiber* me = current_;
  Fiber* next = pick();
  if (next == me) return;
  current_ = next;
  self = next;
  switch_to(me->context, next ? next->context : main_);
}

void Machine::maybe_yield(uint32_t one_in) {
  if (random_->below(one_in) != 0) return;
  make_ready(*current_);
  suspend();
}

void Machine::spin(Place place) {
  Fiber& fiber = *current_;
  fiber.state = State::kSpinning;
  fiber.waits_in = "pause";
  fiber.place = place;
  fiber.polls = 0;
  spinners_.push_back(&fiber);
  suspend();
}

// --- reports

std::string Machine::where(const Block& block) const {
  std::map<std::string, std::vector<int>> groups;
  for (const Fiber& fiber : block.fibers) {
    std::string what;
    if (fiber.state == State::kEnded) what = "have ended";
    else if (fiber.state == State::kReady) what = "have not come that far";
    else what = std::string("in ") + fiber.waits_in + " at " + text(fiber.place);
    groups[what].push_back(fiber.thread);
  }
  const Fiber& first = block.fibers.front();
  std::string text;
  for (const auto& group : groups) {
    text += "\n  block (" + std::to_string(first.x) + ", " + std::to_string(first.y) + ", " +
            std::to_string(first.z) + "), threads " + ranges(group.second) + ": " + group.first;
  }
  return text;
}

std::string Machine::deadlock() const {
  std::string text = rounds_ > kFutileRounds ? "no end in sight: threads spin, and no flag is released"
                                             : "deadlock: no thread can go on";
  int listed = 0;
  for (const std::unique_ptr<Block>& block : blocks_) {
    if (listed == kListedBlocks) {
      text += "\n  and " + std::to_string(blocks_.size() - kListedBlocks) + " more blocks";
      break;
    }
    text += where(*block);
    ++listed;
  }
  if (!waiting_clusters_.empty()) {
    text += "\n  " + std::to_string(waiting_clusters_.size() * size_t(launch_.cluster)) +
            " blocks have not begun: the launch is not cooperative, so a block must not wait for another";
  }
  return text;
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
