// The state of a launch on the host executor: fibers, warps, blocks, clusters, and the scheduler over them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "host_access.h"
#include "host_executor.h"
#include "host_fiber.h"
#include "host_races.h"

namespace customlstm {
namespace device {
namespace host {

struct Warp;
struct Block;

struct Copy {
  Array to, from;
  int64_t i, j;
  int bytes;
  int group;       // the number of copy_commit calls before it
  Place place;
};

enum class State : uint8_t { kReady, kSpinning, kInWarp, kInBlock, kInCluster, kEnded };

struct Fiber : Position {
  Context context;
  void* stack = nullptr;
  State state = State::kEnded;
  const char* waits_in = "";
  Place place = {"", 0};
  Warp* warp_state = nullptr;
  Block* block = nullptr;
  ThreadClock clock;
  const LaneArguments* arguments = nullptr;
  std::vector<Copy> copies;     // not yet done, oldest first
  int commits = 0;
  int polls = 0;                // acquires since it last gave way
  int lane() const { return thread & 31; }
};

// A barrier or collective for which some threads wait.
struct Meeting {
  int waiting = 0;
  const char* what = "";
  Place place = {"", 0};
};

struct Warp {
  Block* block = nullptr;
  uint32_t ready = 0;           // lanes that can run
  Meeting meeting;              // in a collective of the warp
  int waiting_wide = 0;         // lanes in a barrier of the block or cluster
  int ended = 0;
  WarpClock clock;
};

struct Cluster {
  std::vector<Block*> blocks;
  Meeting meeting;
};

struct Block {
  int number = 0;               // in the grid
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  uint32_t ready_warps = 0;
  int ready_at = -1;            // place in Machine::ready_
  Meeting meeting;              // in a barrier of the block or cluster
  int ended = 0;
  BlockClock clock;
  Cluster* cluster = nullptr;
  int cluster_syncs = 0;
  bool remote_writes = false;   // by others, since the last sync_cluster
  Place remote_place = {"", 0};
  unsigned char* memory = nullptr;   // dynamic shared memory
  size_t memory_bytes = 0;           // of the allocation
  ~Block();
};

class Machine {
 public:
  void run(const KernelInfo& kernel, const cuda::Launch& launch, const void* params, uint64_t seed, Random& random);

  // Called from fibers.
  void access(Access kind, const Array& array, int64_t i, int n, Place place);
  Array shared_array(int64_t byte_offset, int64_t count, int32_t element_bytes, const char* name, Place place) const;
  Array remote_array(const Array& array, int rank, Place place);
  void release(const Array& flags, int64_t i, uint32_t value, Place place);
  uint32_t acquire(const Array& flags, int64_t i, Place place);
  void spin(Place place);
  void copy_start(const Copy& copy);
  void copy_commit() { ++current_->commits; }
  void copy_wait(int pending);
  void warp_wide(const char* what, const LaneArguments& mine, WarpCompute compute, Place place);
  void block_barrier(bool of_cluster, Place place);
  [[noreturn]] void fail(std::string text);

 private:
  void check_launch(const KernelInfo& kernel, const cuda::Launch& launch) const;
  void choose_blocks();
  void start_cluster(int number);
  void start_block(Block& block, int number, Cluster& cluster);
  void retire_clusters();
  void end_launch();
  static void fiber_main();
  void thread_ends();

  void make_ready(Fiber& fiber);
  void take(Fiber& fiber);
  Fiber* pick();
  void new_habit();
  bool wake_spinners();
  void suspend();
  void maybe_yield(uint32_t one_in);

  void arrive(Fiber& fiber, State state, const char* what, Place place);
  void meet(Meeting& meeting, const char* what, Place place, const Block& block);
  void wake_block(Block& block);
  void join_block(Block& block);
  void join_cluster(Cluster& cluster);

  std::string here(Place place) const;           // "at file:line by block, thread" of the running thread
  std::string where(const Block& block) const;   // where all threads of the block stand
  std::string deadlock() const;

  // Pools, kept between launches.
  StackPool stacks_;
  std::vector<std::unique_ptr<Block>> free_blocks_;
  std::vector<std::unique_ptr<Block>> blocks_;       // resident
  std::vector<std::unique_ptr<Cluster>> clusters_;   // resident

  Races races_;
  KernelInfo kernel_ = {"", 0, nullptr};
  cuda::Launch launch_ = {};
  const void* params_ = nullptr;
  uint64_t seed_ = 0;
  Random* random_ = nullptr;

  std::vector<int> waiting_clusters_;   // numbers of those not yet begun, the next one last
  size_t most_resident_ = 1;            // clusters

  Context main_;
  Fiber* current_ = nullptr;
  bool failed_ = false;
  std::string error_;

  std::vector<Block*> ready_;
  std::vector<Fiber*> spinners_;
  uint64_t writes_ = 0;        // anything that could end a wait
  uint64_t writes_seen_ = 0;
  int idle_rounds_ = 0;        // of all spinning threads, without a write
  int rounds_ = 0;             // likewise, without a release

  // The scheduler's habit of the moment; see new_habit().
  enum class Habit { kAnyone, kWarp, kBlock, kSparing } habit_ = Habit::kAnyone;
  int lane_order_ = 0;         // 0 random, 1 ascending, 2 descending
  int left_ = 0;               // picks until the next habit
  Block *followed_ = nullptr, *spared_ = nullptr;
  int followed_warp_ = 0, spared_warp_ = 0;
};

Machine& machine();

}  // namespace host
}  // namespace device
}  // namespace customlstm
