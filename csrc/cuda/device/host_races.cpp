#include "host_races.h"

#include <algorithm>
#include <cstring>

namespace customlstm {
namespace device {
namespace host {

namespace {

constexpr size_t kKeptPages = 8192;   // between launches

int log2_of(int bytes) { return __builtin_ctz(unsigned(bytes)); }

bool is_write(Access kind) {
  return kind == Access::kWrite || kind == Access::kRelease || kind == Access::kCopyStart || kind == Access::kCopyEnd;
}

}  // namespace

std::string text(Place place) {
  std::string path = place.file;
  size_t at = std::string::npos;
  for (const char* root : {"csrc/", "tests/"}) at = std::min(at, path.rfind(root));
  return (at == std::string::npos ? path : path.substr(at)) + ":" + std::to_string(place.line);
}

void Page::reset(uint64_t launch_number, bool poisoned) {
  launch = launch_number;
  poison = poisoned;
  cells.assign(kPageBytes >> shift, Cell());   // as fine as it was: the next launch will need the same
}

void Races::refine(Page& page, int shift) {
  const int factor = 1 << (page.shift - shift);
  std::vector<Cell> split(page.cells.size() * factor);
  for (size_t i = 0; i < split.size(); ++i) {
    split[i] = page.cells[i / factor];
    if (split[i].more && i % factor != 0) {
      const uint32_t copy = new_more();
      more_[copy] = more_[split[i].more];
      split[i].more = copy;
    }
  }
  page.cells.swap(split);
  page.shift = shift;
}

uint32_t Races::new_more() {
  if (free_more_.empty()) {
    more_.emplace_back();
    return uint32_t(more_.size() - 1);
  }
  const uint32_t index = free_more_.back();
  free_more_.pop_back();
  more_[index].clear();
  return index;
}

void Races::start_launch(uint32_t warps_a_block, int grid_x, int grid_y) {
  clocks.reset(warps_a_block);
  ++launch_;
  grid_x_ = grid_x;
  grid_y_ = grid_y;
  if (pages_.size() > kKeptPages) {
    pages_.clear();
    recent_.assign(kRecent, Recent());
  }
  more_.resize(1);
  free_more_.clear();
  published_.clear();
}

void Races::start_shared(const void* memory, size_t bytes) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory) >> kPageBits;
  for (uintptr_t i = 0; i * kPageBytes < bytes; ++i) page(first + i).reset(launch_, true);
}

Page& Races::page(uintptr_t number) {
  Recent& recent = recent_[number % kRecent];
  if (recent.number != number) {
    std::unique_ptr<Page>& kept = pages_[number];
    if (!kept) kept.reset(new Page);
    recent.number = number;
    recent.page = kept.get();
  }
  if (recent.page->launch != launch_) recent.page->reset(launch_, false);
  return *recent.page;
}

uint16_t Races::intern(Place place) {
  const size_t hash = (reinterpret_cast<uintptr_t>(place.file) >> 4) + size_t(place.line);
  RecentSite& recent = recent_sites_[hash % kRecentSites];
  if (recent.place.file == place.file && recent.place.line == place.line) return recent.site;
  const auto same = [&](Place p) { return p.line == place.line && std::strcmp(p.file, place.file) == 0; };
  const auto found = std::find_if(sites_.begin(), sites_.end(), same);
  recent.place = place;
  recent.site = uint16_t(found - sites_.begin());
  if (found == sites_.end()) sites_.push_back(place);
  return recent.site;
}

void Races::access(Access kind, const Array& array, uintptr_t address, int bytes, ThreadClock& thread, Place place) {
  Attempt a = {kind, array, address, thread, clocks.stamp(thread), intern(place)};
  if (kind != Access::kRelease && kind != Access::kAcquire) thread.touched = a.stamp.segment();
  while (bytes > 0) {
    const int piece = std::min(bytes, 16), shift = log2_of(piece);
    Page& here = page(a.address >> kPageBits);
    if (here.shift > shift) refine(here, shift);
    Cell* cell = &here.cells[(a.address & (kPageBytes - 1)) >> here.shift];
    for (int n = piece >> here.shift; n > 0; --n, ++cell, a.address += uintptr_t(1) << here.shift) {
      if (is_write(kind)) write(*cell, a);
      else read(*cell, a, here.poison);
    }
    bytes -= piece;
  }
}

void Races::acquire(uintptr_t address, ThreadClock& thread) {
  const auto news = published_.find(address);
  if (news != published_.end()) clocks.learn(thread, news->second);
}

void Races::read(Cell& cell, const Attempt& a, bool poison) {
  if (cell.copying) {
    fail("read before copy_wait: " + name(a) + present(a, "read") +
         past("copy_async into it", cell.write_site, cell.write, false));
  }
  if (!cell.write.none()) {
    const bool flags = cell.flag && a.kind == Access::kAcquire;
    if (!(cell.write == a.stamp) && !flags && !clocks.ordered(cell.write, false, false, a.thread))
      race(a, "read", past("written", cell.write_site, cell.write, false));
    if (a.kind == Access::kRead && !a.array.shared && clocks.block_of(cell.write) != a.thread.warp->block->index) {
      fail("stale read: use read_fresh, since a cache may hold what was there before another block wrote it: " +
           name(a) + present(a, "read") + past("written", cell.write_site, cell.write, false));
    }
  } else if (poison) {
    fail("read of uninitialised shared memory: " + name(a) + present(a, "read"));
  }
  note_reader(cell, a);
}

void Races::note_reader(Cell& cell, const Attempt& a) {
  Readers& last = cell.readers;
  const bool acquires = a.kind == Access::kAcquire;
  if (last.stamp == a.stamp && last.acquires == acquires) return;
  const uint32_t warp = a.thread.warp->index, block = a.thread.warp->block->index;
  if (!last.stamp.none() && clocks.block_of(last.stamp) != block) {
    if (clocks.ordered(last.stamp, last.lanes, last.warps, a.thread)) {
      last = Readers();
    } else {
      // Readers in several blocks: those of this block come to the front, all others are kept.
      if (!cell.more) cell.more = new_more();
      std::vector<Readers>& others = more_[cell.more];
      const auto own = std::find_if(others.begin(), others.end(),
                                    [&](const Readers& r) { return clocks.block_of(r.stamp) == block; });
      if (own == others.end()) {
        others.push_back(last);
        last = Readers();
      } else {
        std::swap(last, *own);
      }
    }
  }
  // Of one block: earlier readers whom a barrier separates from this one are implied by it.
  if (last.stamp.none() || clocks.ordered(last.stamp, last.lanes, last.warps, a.thread)) {
    last.lanes = last.warps = false;
    last.acquires = acquires;
    last.stamp = a.stamp;
  } else {
    if (clocks.warp_of(last.stamp) != warp) last.warps = true;
    else if (last.stamp.lane() != a.thread.lane) last.lanes = true;
    if (last.stamp.segment() < a.stamp.segment()) last.stamp = a.stamp;
    last.acquires = last.acquires && acquires;
  }
  last.site = a.site;
}

bool Races::harmless(const Readers& readers, const Attempt& a) const {
  if (readers.acquires && a.kind == Access::kRelease) return true;
  return readers.stamp.none() || clocks.ordered(readers.stamp, readers.lanes, readers.warps, a.thread);
}

void Races::write(Cell& cell, const Attempt& a) {
  const char* now = a.kind == Access::kRelease ? "release" : a.kind == Access::kWrite ? "write" : "copy_async";
  if (cell.copying) {
    // The copy itself, when it is waited for, is known to be the thread's own by its stamp's thread.
    const bool own = a.kind == Access::kCopyEnd && cell.write.lane() == a.thread.lane &&
                     clocks.warp_of(cell.write) == a.thread.warp->index;
    if (!own) {
      fail("write before copy_wait: " + name(a) + present(a, now) +
           past("copy_async into it", cell.write_site, cell.write, false));
    }
  } else if (!cell.write.none() && !(cell.write == a.stamp) && !(cell.flag && a.kind == Access::kRelease) &&
             !clocks.ordered(cell.write, false, false, a.thread)) {
    race(a, now, past("written", cell.write_site, cell.write, false));
  }
  if (!harmless(cell.readers, a)) {
    const Readers& r = cell.readers;
    race(a, now, past("read", r.site, r.stamp, r.lanes || r.warps));
  }
  cell.readers = Readers();
  if (cell.more) {
    for (const Readers& r : more_[cell.more])
      if (!harmless(r, a)) race(a, now, past("read", r.site, r.stamp, r.lanes || r.warps));
    free_more_.push_back(cell.more);
    cell.more = 0;
  }
  cell.write = a.stamp;
  cell.write_site = a.site;
  cell.flag = a.kind == Access::kRelease;
  cell.copying = a.kind == Access::kCopyStart;
}

// --- reports

std::string Races::name(const Attempt& a) const {
  const int64_t index =
      int64_t(a.address - reinterpret_cast<uintptr_t>(a.array.data)) / int64_t(a.array.element_bytes);
  return std::string(a.array.shared ? "shared" : "global") + " array '" + a.array.name + "' [" +
         std::to_string(index) + "]";
}

std::string Races::thread_name(Stamp stamp) const {
  const uint32_t warp = clocks.warp_of(stamp), block = warp / clocks.warps_a_block();
  const uint32_t x = block % uint32_t(grid_x_), y = block / uint32_t(grid_x_) % uint32_t(grid_y_);
  const uint32_t z = block / uint32_t(grid_x_) / uint32_t(grid_y_);
  return "block (" + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + "), thread " +
         std::to_string(warp % clocks.warps_a_block() * 32 + stamp.lane());
}

std::string Races::present(const Attempt& a, const char* verb) const {
  return std::string("\n  ") + verb + " at " + text(sites_[a.site]) + " by " + thread_name(a.stamp);
}

std::string Races::past(const char* verb, uint16_t site, Stamp stamp, bool several) const {
  return std::string("\n  ") + verb + " at " + text(sites_[site]) + " by " + thread_name(stamp) +
         (several ? " and others" : "");
}

void Races::race(const Attempt& a, const char* now, const std::string& before) const {
  fail("race: neither a barrier nor a flag orders two accesses to " + name(a) + before + present(a, now));
}

}  // namespace host
}  // namespace device
}  // namespace customlstm
