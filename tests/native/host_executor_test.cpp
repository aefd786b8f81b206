// Kernels for tests/cuda/test_host_executor.py, correct ones here and faulty ones in host_executor_faults.h, and the
// function through which Python launches them. All have the same parameters.
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "../../csrc/cuda/device/device.h"
#include "../../csrc/cuda/device/host_executor.h"

namespace {

using namespace customlstm;
using namespace customlstm::device;

struct Params {
  const void* in;
  const void* other;
  void* out;
  uint32_t* flags;
  int64_t count;       // elements of in, other and out
  int64_t steps;
};

int grid_blocks(const Params& p) { return int(p.steps >> 32); }
int64_t steps_of(const Params& p) { return p.steps & 0xffffffff; }
Global<const float> in_of(const Params& p) { return {static_cast<const float*>(p.in), p.count, "in"}; }
Global<float> out_of(const Params& p) { return {static_cast<float*>(p.out), p.count, "out"}; }
Global<uint32_t> flags_of(const Params& p) { return {p.flags, grid_blocks(p), "flags"}; }

template <class T>
T warp_sum(T value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Each block waits for all others; call by all threads.
void device_barrier(const Params& p, uint32_t round) {
  sync_block();
  if (thread_index() == 0) release(flags_of(p), block_x(), round);
  for (int i = thread_index(); i < grid_blocks(p); i += block_threads()) {
    while (acquire(flags_of(p), i) < round) pause();
  }
  sync_block();
}

#define KERNEL(name)                                                       \
  struct name {                                                            \
    using Params = ::Params;                                               \
    static constexpr int kThreads = 1024;                                  \
    static constexpr const char* kName = #name;                            \
    static CUSTOMLSTM_DEVICE void run(const Params& p);                    \
  };                                                                       \
  CUSTOMLSTM_DEVICE void name::run([[maybe_unused]] const Params& p)

// out[block] = sum of the block's share of in.
KERNEL(reduce) {
  const Shared<float> sums = shared<float>(0, 32, "sums");
  float sum = 0;
  const int64_t share = p.count / grid_blocks(p), first = share * block_x();
  for (int64_t i = thread_index(); i < share; i += block_threads()) sum += in_of(p).read(first + i);
  sum = warp_sum(sum);
  if (lane() == 0) sums.write(warp(), sum);
  sync_block();
  if (thread_index() == 0) {
    float total = 0;
    for (int w = 0; w < block_threads() / 32; ++w) total += sums.read(w);
    out_of(p).write(block_x(), total);
  }
}

// Sums of double and int by shuffles; the lanes of a warp then pass values on through shared memory.
KERNEL(warps) {
  const int first = warp() * 32;
  const Shared<float> ring = shared<float>(0, block_threads(), "ring");
  const double d = warp_sum(double(thread_index()));
  const int n = warp_sum(lane());
  float x = float(d) + float(n);
  for (int step = 0; step < steps_of(p); ++step) {
    ring.write(thread_index(), x);
    sync_warp();
    x = ring.read(first + (lane() + 1) % 32) + float(lane());
    sync_warp();
  }
  out_of(p).write(block_x() * block_threads() + thread_index(), x);
}

// Every block sends its rank, plus what it has, to all others, in turn between two copies.
KERNEL(cluster) {
  const int size = cluster_size(), threads = block_threads();
  const Shared<float> box = shared<float>(0, 2 * size * threads * 4, "box");
  float x = in_of(p).read(block_x() * threads + thread_index());
  sync_cluster();
  for (int step = 0; step < steps_of(p); ++step) {
    const int copy = step % 2 * size * threads;
    for (int to = 0; to < size; ++to) {
      const Vector<float, 4> mail = {{x, x, x, float(cluster_rank())}};
      write_remote(box, to, (copy + cluster_rank() * threads + thread_index()) * 4, mail);
    }
    sync_cluster();
    float sum = 0;
    for (int from = 0; from < size; ++from) {
      const auto mail = box.read_vector<4>((copy + from * threads + thread_index()) * 4);
      sum += mail.v[1] + mail.v[3];
    }
    x = sum / float(size);
  }
  out_of(p).write(block_x() * threads + thread_index(), x);
}

// x becomes the mean over all blocks, rotated by a thread, in every step; written as 16-bit, read as words.
KERNEL(grid) {
  const int threads = block_threads();
  const int64_t row = int64_t(threads) * grid_blocks(p);
  const Global<BFloat16> narrow(static_cast<BFloat16*>(p.out), 2 * row, "exchange");
  const Global<uint32_t> words(static_cast<uint32_t*>(p.out), row, "exchange");
  float x = in_of(p).read(block_x() * threads + thread_index());
  for (int step = 0; step < steps_of(p); ++step) {
    const int64_t copy = step % 2 * row;
    narrow.write(copy + block_x() * threads + thread_index(), to_bf16(x));
    device_barrier(p, uint32_t(step) + 1);
    const int from = (thread_index() + 1) % threads;
    float sum = 0;
    for (int b = 0; b < grid_blocks(p); ++b) {
      const uint32_t pair = words.read_fresh<1>((copy + b * threads + from) / 2).v[0];
      sum += to_float(BFloat16{uint16_t(from % 2 ? pair >> 16 : pair)});
    }
    x = sum / float(grid_blocks(p));
  }
}

// C = A B + C, one tile a warp, operands in the order of the fragments' definition.
template <class T>
void product(const Params& p, void (*mma)(float*, const uint32_t*, const uint32_t*, device::host::Place)) {
  const int depth = sizeof(T) == 2 ? 16 : 8, g = lane() / 4, t = lane() % 4, pair = sizeof(T) == 2 ? 2 : 1;
  const int64_t tile = block_x() * (block_threads() / 32) + warp();
  const Global<const T> a(static_cast<const T*>(p.in) + tile * 16 * depth, 16 * depth, "a");
  const Global<const T> b(static_cast<const T*>(p.other) + tile * 8 * depth, 8 * depth, "b");
  const Global<float> c(static_cast<float*>(p.out) + tile * 128, 128, "c");
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; ++i) {
    T x[2];
    for (int j = 0; j < pair; ++j) x[j] = a.read((g + i % 2 * 8) * depth + pair * t + i / 2 * depth / 2 + j);
    std::memcpy(&fa[i], x, 4);
  }
  for (int i = 0; i < 2; ++i) {
    T x[2];
    for (int j = 0; j < pair; ++j) x[j] = b.read((pair * t + i * depth / 2 + j) * 8 + g);
    std::memcpy(&fb[i], x, 4);
  }
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = c.read((g + i / 2 * 8) * 8 + 2 * t + i % 2);
  mma(acc, fa, fb, device::host::Place::here());
  for (int i = 0; i < 4; ++i) c.write((g + i / 2 * 8) * 8 + 2 * t + i % 2, acc[i]);
}
KERNEL(product_bf16) { product<uint16_t>(p, mma_bf16); }
KERNEL(product_f16) { product<uint16_t>(p, mma_f16); }
KERNEL(product_tf32) { product<uint32_t>(p, mma_tf32); }

// Two copies in flight: out = in, through shared memory, in pieces of 4, 8 and 16 bytes.
template <int Elements>
void copy_through(const Params& p, int64_t first, int64_t tiles) {
  const int width = block_threads() * Elements;
  const Shared<float> stage = shared<float>(0, 2 * 4 * block_threads(), "stage");
  const auto start = [&](int64_t tile) {
    if (tile < tiles)
      copy_async<Elements * 4>(stage, int(tile % 2) * width + thread_index() * Elements, in_of(p),
                               first + tile * width + thread_index() * Elements);
    copy_commit();
  };
  start(0);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    start(tile + 1);
    copy_wait<1>();
    sync_block();
    for (int i = thread_index(); i < width; i += block_threads())
      out_of(p).write(first + tile * width + i, stage.read(int(tile % 2) * width + i));
    sync_block();
  }
  copy_wait<0>();
}
KERNEL(copies) {
  const int64_t tiles = steps_of(p), unit = tiles * block_threads(), first = block_x() * 7 * unit;
  copy_through<1>(p, first, tiles);
  copy_through<2>(p, first + unit, tiles);
  copy_through<4>(p, first + 3 * unit, tiles);
}

// A value goes from block to block by release and acquire of single threads; the first takes no barrier, the second
// only one of the warp, the third passes on what it has read.
KERNEL(relay) {
  const Global<float> out = out_of(p);
  const int b = block_x(), blocks = grid_blocks(p);
  if (warp() == 0) {
    if (b > 0) {
      if (lane() == 5) {
        while (acquire(flags_of(p), b - 1) == 0) pause();
      }
      sync_warp();
    }
    for (int earlier = 0; earlier < b; ++earlier) {
      const int at = earlier * 32 + lane();
      out.write(b * 32 + lane(), (earlier == 0 ? 0 : out.read(b * 32 + lane())) + out.read_fresh<1>(at).v[0]);
    }
    if (b == 0) out.write(lane(), in_of(p).read(lane()));
    sync_warp();
    if (lane() == 9 && b < blocks - 1) release(flags_of(p), b, 1);
  }
}
KERNEL(relay_of_one) {
  const Global<float> out = out_of(p);
  if (thread_index() != 40) return;
  float x = in_of(p).read(block_x());
  if (block_x() > 0) {
    while (acquire(flags_of(p), block_x() - 1) == 0) pause();
    for (int i = 0; i < block_x(); ++i) x += out.read_fresh<1>(i).v[0];
  }
  out.write(block_x(), x);
  release(flags_of(p), block_x(), 1);
}

// What one LSTM step costs: 20 collectives of each warp, a device-wide barrier, some memory.
KERNEL(busy) {
  const int threads = block_threads();
  const Shared<uint32_t> words = shared<uint32_t>(0, 4 * threads, "words");
  const Global<uint32_t> exchange(static_cast<uint32_t*>(p.out), 2 * threads * grid_blocks(p), "exchange");
  words.write_vector<4>(4 * thread_index(), {{0, 0, 0, 0}});
  sync_block();
  float acc[4] = {0, 0, 0, 0};
  for (int step = 0; step < steps_of(p); ++step) {
    for (int i = 0; i < 16; ++i) {
      const auto a = words.read_vector<4>(4 * thread_index());
      const auto b = words.read_vector<2>(2 * lane());
      mma_bf16(acc, a.v, b.v);
    }
    const int64_t at = (step % 2 * grid_blocks(p) + block_x()) * threads + thread_index();
    exchange.write(at, uint32_t(acc[0]));
    device_barrier(p, uint32_t(step) + 1);
    acc[0] += float(exchange.read_fresh<1>((step % 2 * grid_blocks(p)) * threads + thread_index()).v[0]);
    sync_block();
  }
}

#include "host_executor_faults.h"

struct Entry {
  const char* name;
  void (*launch)(cuda::HostLauncher&, const cuda::Launch&, const Params&);
};
template <class Kernel>
constexpr Entry entry() {
  return {Kernel::kName, [](cuda::HostLauncher& launcher, const cuda::Launch& launch, const Params& params) {
            launcher.launch<Kernel>(launch, params);
          }};
}
const Entry kKernels[] = {
    entry<reduce>(), entry<warps>(), entry<cluster>(), entry<grid>(), entry<product_bf16>(), entry<product_f16>(),
    entry<product_tf32>(), entry<copies>(), entry<relay>(), entry<relay_of_one>(), entry<busy>(), FAULTS};

}  // namespace

// 0 and an empty text, or 1 and the error. `launch`: grid x y z, threads, shared bytes, cluster, cooperative.
extern "C" int customlstm_test_launch(const char* name, uint64_t seed, const int64_t* launch, const Params* params,
                                      char* error, int64_t error_bytes) {
  error[0] = 0;
  try {
    for (const Entry& entry : kKernels) {
      if (std::strcmp(entry.name, name) != 0) continue;
      cuda::HostLauncher launcher(seed);
      const cuda::Launch l = {int32_t(launch[0]), int32_t(launch[1]), int32_t(launch[2]), int32_t(launch[3]),
                              launch[4], int32_t(launch[5]), launch[6] != 0};
      entry.launch(launcher, l, *params);
      return 0;
    }
    throw std::runtime_error(std::string("no such kernel: ") + name);
  } catch (const std::runtime_error& e) {
    std::snprintf(error, size_t(error_bytes), "%s", e.what());
    return 1;
  }
}
