#include "scratch.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace customlstm {

namespace {

constexpr size_t kCacheLine = 64, kLargePage = size_t{2} << 20;

std::atomic<void*> kept{nullptr};

void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kLargePage ? kLargePage : kCacheLine;
  void* block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (block == nullptr) throw std::bad_alloc();
  advise_large_pages(block, bytes);
  return block;
}

// AddressSanitizer sees an overrun only at the end of an allocation of the very size that was asked for.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kKeep = false;
#else
constexpr bool kKeep = true;
#endif

}  // namespace

Scratch::Scratch(size_t bytes) : keep_(kKeep && bytes <= kKept) {
  // Always the whole block, of which the system gives only the pages that are touched: no growing, no fragments.
  block_ = keep_ ? kept.exchange(nullptr) : nullptr;
  if (block_ == nullptr) block_ = allocate(keep_ ? kKept : bytes > 0 ? bytes : 1);
}

Scratch::~Scratch() {
  if (keep_) {
    void* none = nullptr;
    if (kept.compare_exchange_strong(none, block_)) return;
  }
  std::free(block_);
}

void advise_large_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kLargePage * kLargePage;
  if (data != nullptr && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace customlstm
