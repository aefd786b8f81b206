// Kernels with one fault each. The lines that a report must name are marked: "fault: <kernel>", more than once where
// the report names several.

KERNEL(no_sync_block) {
  const Shared<int> x = shared<int>(0, block_threads(), "x");
  x.write(thread_index(), thread_index());                          // fault: no_sync_block
  if (warp() == 0) x.read(32 + lane());                             // fault: no_sync_block
}
KERNEL(no_sync_warp) {
  const Shared<int> x = shared<int>(0, 32, "x");
  x.write(lane(), lane());                                          // fault: no_sync_warp
  shuffle_xor(1, 1);                                                // no barrier for memory
  x.read(31 - lane());                                              // fault: no_sync_warp
}
KERNEL(overwrite) {                                                 // the second barrier of a loop forgotten
  const Shared<int> x = shared<int>(0, block_threads(), "x");
  for (int i = 0; i < 2; ++i) {
    x.write(thread_index(), i);                                     // fault: overwrite
    sync_block();
    x.read((thread_index() + 32) % block_threads());                // fault: overwrite
  }
}
KERNEL(half_overwritten) {                                          // elements narrower than what was read
  const Shared<uint16_t> halves = shared<uint16_t>(0, 128, "halves");
  const Shared<uint32_t> words = shared<uint32_t>(0, 64, "words");
  if (thread_index() < 16) words.write_vector<4>(4 * thread_index(), {{1, 2, 3, 4}});
  sync_block();
  if (thread_index() == 40) words.read(7);                          // fault: half_overwritten
  if (thread_index() == 3) halves.write(15, 0);                     // fault: half_overwritten
}
KERNEL(out_of_global) {
  if (thread_index() == 7) in_of(p).read(p.count);                  // fault: out_of_global
}
KERNEL(before_global) {
  out_of(p).write(thread_index() - 1, 0);                           // fault: before_global
}
KERNEL(out_of_shared) {
  const Shared<float> x = shared<float>(0, 30, "x");
  x.write(lane(), 1);                                               // fault: out_of_shared
}
KERNEL(vector_over_the_end) {
  const Shared<float> x = shared<float>(0, 30, "x");
  x.write_vector<4>(28, {{1, 1, 1, 1}});                            // fault: vector_over_the_end
}
KERNEL(array_too_large) {
  shared<double>(64, 1 << 20, "x");                                 // fault: array_too_large
}
KERNEL(null_array) {
  Global<float>(nullptr, 0, "nothing").read(0);                     // fault: null_array
}
KERNEL(misaligned_index) {
  in_of(p).read_vector<4>(2);                                       // fault: misaligned_index
}
KERNEL(misaligned_pointer) {
  Global<const float>(static_cast<const float*>(p.in) + 1, 8, "in").read_vector<4>(4);   // fault: misaligned_pointer
}
KERNEL(uninitialised) {
  const Shared<float> x = shared<float>(0, 64, "x");
  x.write(thread_index(), 1);
  sync_block();
  if (thread_index() == 0) x.read(32);                              // fault: uninitialised
}
KERNEL(never_released) {
  if (block_x() > 0 && thread_index() == 0) release(flags_of(p), block_x(), 1);
  if (thread_index() == 33) {
    for (int i = 0; i < grid_blocks(p); ++i) {
      while (acquire(flags_of(p), i) == 0) pause();                 // fault: never_released
    }
  }
  sync_block();                                                     // fault: never_released
}
KERNEL(no_pause) {
  while (acquire(flags_of(p), 0) == 0) {                            // fault: no_pause
  }
}
KERNEL(early_end) {
  if (thread_index() == 50) return;
  sync_block();                                                     // fault: early_end
}
KERNEL(early_end_of_lane) {
  if (lane() == 3) return;
  shuffle_xor(1.0f, 2);                                             // fault: early_end_of_lane
}
KERNEL(two_barriers) {
  if (warp() == 0) sync_block();                                    // fault: two_barriers
  else sync_block();                                                // fault: two_barriers
}
KERNEL(divergent_warp) {
  if (lane() < 16) sync_warp();                                     // fault: divergent_warp
  else sync_block();                                                // fault: divergent_warp
}
KERNEL(needs_company) {                                             // a device-wide barrier
  sync_block();
  if (thread_index() == 0) {
    release(flags_of(p), block_x(), 1);
    for (int i = 0; i < grid_blocks(p); ++i) {
      while (acquire(flags_of(p), i) == 0) pause();                 // fault: needs_company
    }
  }
}
KERNEL(stale) {
  out_of(p).write(block_x() * block_threads() + thread_index(), 1); // fault: stale
  device_barrier(p, 1);
  const int64_t other = (block_x() + 1) % grid_blocks(p);
  out_of(p).read(other * block_threads() + thread_index());         // fault: stale
}
KERNEL(stale_copy) {
  const Shared<float> x = shared<float>(0, 2 * block_threads(), "x");
  out_of(p).write_vector<2>(2 * (block_x() * block_threads() + thread_index()), {{1, 1}});   // fault: stale_copy
  device_barrier(p, 1);
  const int64_t other = (block_x() + 1) % grid_blocks(p);
  const int64_t from = 2 * (other * block_threads() + thread_index());
  copy_async<8>(x, 2 * thread_index(), out_of(p), from);            // fault: stale_copy
  copy_wait<0>();
}
KERNEL(no_copy_wait) {
  const Shared<float> x = shared<float>(0, block_threads(), "x");
  x.write(thread_index(), 0);
  copy_async<4>(x, thread_index(), in_of(p), thread_index());       // fault: no_copy_wait
  copy_commit();
  x.read(thread_index());                                           // fault: no_copy_wait
  copy_wait<0>();
}
KERNEL(no_copy_commit) {                                            // then the wait does not wait for it
  const Shared<float> x = shared<float>(0, block_threads(), "x");
  copy_async<4>(x, thread_index(), in_of(p), thread_index());       // fault: no_copy_commit
  copy_wait<0>();
  x.read(thread_index());                                           // fault: no_copy_commit
}
KERNEL(copy_at_end) {
  const Shared<float> x = shared<float>(0, block_threads(), "x");
  copy_async<4>(x, thread_index(), in_of(p), thread_index());       // fault: copy_at_end
  copy_commit();
}
KERNEL(copy_not_shared) {                                           // waited for, but no barrier before others read it
  const Shared<float> x = shared<float>(0, block_threads(), "x");
  copy_async<4>(x, thread_index(), in_of(p), thread_index());       // fault: copy_not_shared
  copy_commit();
  copy_wait<0>();
  x.read(block_threads() - 1 - thread_index());                     // fault: copy_not_shared
}
KERNEL(no_acquire) {
  out_of(p).write(block_x() * block_threads() + thread_index(), 1); // fault: no_acquire
  sync_block();
  const int64_t other = (block_x() + 1) % grid_blocks(p);
  out_of(p).read_fresh<1>(other * block_threads() + thread_index());   // fault: no_acquire
  out_of(p).write(other * block_threads() + thread_index(), 2);     // fault: no_acquire
}
KERNEL(no_release) {                                                // the flag is written as data
  if (thread_index() != 0) return;
  if (block_x() == 0) {
    flags_of(p).write(0, 1);                                        // fault: no_release
  } else {
    acquire(flags_of(p), 0);                                        // fault: no_release
  }
}
KERNEL(release_too_early) {                                         // not after a barrier, as the other warps need
  if (block_x() == 0) {
    out_of(p).write(thread_index(), 1);                             // fault: release_too_early
    if (thread_index() == 0) release(flags_of(p), 0, 1);
  } else {
    while (acquire(flags_of(p), 0) == 0) pause();
    out_of(p).read_fresh<1>(thread_index() ^ 32);                   // fault: release_too_early
  }
}
KERNEL(no_sync_after_acquire) {                                     // only one thread has acquired
  out_of(p).write(block_x() * block_threads() + thread_index(), 1); // fault: no_sync_after_acquire
  sync_block();
  if (thread_index() == 0) {
    release(flags_of(p), block_x(), 1);
    while (acquire(flags_of(p), 1 - block_x()) == 0) pause();
  }
  if (thread_index() == 40)
    out_of(p).read_fresh<1>((1 - block_x()) * block_threads() + 40);   // fault: no_sync_after_acquire
}
KERNEL(one_copy) {                                                  // exchanged in one buffer instead of two
  for (uint32_t step = 0; step < 3; ++step) {
    out_of(p).write(block_x() * block_threads() + thread_index(), float(step));   // fault: one_copy
    device_barrier(p, step + 1);
    for (int b = 0; b < grid_blocks(p); ++b)
      out_of(p).read_fresh<1>(b * block_threads() + thread_index());   // fault: one_copy
  }
}
KERNEL(remote_too_early) {
  const Shared<float> x = shared<float>(0, 4, "x");
  if (thread_index() == 0) write_remote<1>(x, 1 - cluster_rank(), 0, {{1}});   // fault: remote_too_early
  sync_cluster();
}
KERNEL(remote_without_sync) {
  const Shared<float> x = shared<float>(0, 8, "x");
  sync_cluster();
  const int mine = cluster_rank(), other = 1 - mine;
  if (thread_index() == 0) write_remote<1>(x, other, mine, {{1}});  // fault: remote_without_sync
  sync_block();
  if (thread_index() == 1) x.write(other, 0);                       // fault: remote_without_sync
  sync_cluster();
}
KERNEL(remote_at_end) {
  const Shared<float> x = shared<float>(0, 4, "x");
  sync_cluster();
  if (thread_index() == 0 && cluster_rank() == 0) write_remote<1>(x, 1, 0, {{1}});   // fault: remote_at_end
}
KERNEL(cluster_left_waiting) {
  if (cluster_rank() == 0) sync_cluster();                          // fault: cluster_left_waiting
}
KERNEL(throws) {
  if (thread_index() == 11) throw std::runtime_error("a kernel's own words");
  sync_block();
}

#define FAULTS                                                                                                   \
  entry<no_sync_block>(), entry<no_sync_warp>(), entry<overwrite>(), entry<half_overwritten>(),                  \
      entry<out_of_global>(), entry<before_global>(), entry<out_of_shared>(), entry<vector_over_the_end>(),      \
      entry<array_too_large>(), entry<null_array>(), entry<misaligned_index>(), entry<misaligned_pointer>(),     \
      entry<uninitialised>(), entry<never_released>(), entry<no_pause>(), entry<early_end>(),                    \
      entry<early_end_of_lane>(), entry<two_barriers>(), entry<divergent_warp>(), entry<needs_company>(),        \
      entry<stale>(), entry<stale_copy>(), entry<no_copy_wait>(), entry<no_copy_commit>(), entry<copy_at_end>(), \
      entry<copy_not_shared>(), entry<no_acquire>(), entry<no_release>(), entry<release_too_early>(),            \
      entry<no_sync_after_acquire>(), entry<one_copy>(), entry<remote_too_early>(),                              \
      entry<remote_without_sync>(), entry<remote_at_end>(), entry<cluster_left_waiting>(), entry<throws>()
