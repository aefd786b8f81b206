// Shadow memory: for every element of global and shared memory who wrote it last and who has read it since, so that
// an access which no barrier and no flag orders after a conflicting one is found whatever the schedule was.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "host_access.h"
#include "host_clocks.h"

namespace customlstm {
namespace device {
namespace host {

// Readers of one element: one thread, or several of one block, of which the stamp has the highest segment.
struct Readers {
  Stamp stamp;
  uint16_t site = 0;
  bool lanes = false, warps = false;   // other lanes of the warp, other warps of the block
  bool acquires = false;               // all of them by acquire, which a release may follow in any order
};

struct Cell {
  Stamp write;
  uint16_t write_site = 0;
  bool flag = false;       // written by release
  bool copying = false;    // a copy_async into it has not been waited for
  Readers readers;
  uint32_t more = 0;       // index into Races::more_, of the readers in other blocks; 0: none
};

// 4 KB of memory. A cell stands for 1 << shift bytes; pages start with wide cells and are refined as narrower elements
// are accessed, since one array may be written as 16-bit numbers and read as words.
struct Page {
  uint64_t launch = 0;
  int shift = 4;
  bool poison = false;     // shared memory: a cell that was never written must not be read
  std::vector<Cell> cells;
  void reset(uint64_t launch, bool poison);
};
constexpr int kPageBits = 12;
constexpr uintptr_t kPageBytes = uintptr_t(1) << kPageBits;

class Races {
 public:
  Clocks clocks;

  void start_launch(uint32_t warps_a_block, int grid_x, int grid_y);
  void start_shared(const void* memory, size_t bytes);     // of a block that begins

  // Checks and notes an access to memory that is aligned to min(bytes, 16). A conflict ends in the exception that
  // report() makes.
  void access(Access kind, const Array& array, uintptr_t address, int bytes, ThreadClock& thread, Place place);

  void release(uintptr_t address, ThreadClock& thread) { published_[address] = clocks.publish(thread); }
  void acquire(uintptr_t address, ThreadClock& thread);

 private:
  struct Attempt {
    Access kind;
    const Array& array;
    uintptr_t address;
    ThreadClock& thread;
    Stamp stamp;
    uint16_t site;
  };

  Page& page(uintptr_t number);
  void refine(Page& page, int shift);
  uint32_t new_more();
  uint16_t intern(Place place);
  void read(Cell& cell, const Attempt& a, bool poison);
  void note_reader(Cell& cell, const Attempt& a);
  void write(Cell& cell, const Attempt& a);
  bool harmless(const Readers& readers, const Attempt& a) const;

  std::string name(const Attempt& a) const;
  std::string thread_name(Stamp stamp) const;
  std::string present(const Attempt& a, const char* verb) const;
  std::string past(const char* verb, uint16_t site, Stamp stamp, bool several) const;
  [[noreturn]] void race(const Attempt& a, const char* now, const std::string& before) const;

  uint64_t launch_ = 0;
  int grid_x_ = 1, grid_y_ = 1;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  struct Recent {
    uintptr_t number = ~uintptr_t(0);
    Page* page = nullptr;
  };
  static constexpr size_t kRecent = 1024;
  std::vector<Recent> recent_ = std::vector<Recent>(kRecent);

  std::vector<std::vector<Readers>> more_ = std::vector<std::vector<Readers>>(1);
  std::vector<uint32_t> free_more_;
  std::unordered_map<uintptr_t, Knowledge> published_;

  std::vector<Place> sites_;
  struct RecentSite {
    Place place = {nullptr, 0};
    uint16_t site = 0;
  };
  static constexpr size_t kRecentSites = 512;
  std::vector<RecentSite> recent_sites_ = std::vector<RecentSite>(kRecentSites);
};

// "path:line", the path from csrc/ or tests/ on.
std::string text(Place place);

// Ends the launch with this error; for code that runs in a fiber.
[[noreturn]] void fail(std::string text);

}  // namespace host
}  // namespace device
}  // namespace customlstm
