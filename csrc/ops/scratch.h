// Memory that a call on the CPU needs only while it runs.
#pragma once

#include <cstddef>

namespace customlstm {

// One block of up to kKept bytes stays with the process between calls: fresh pages cost a fault each, for short
// sequences more than the arithmetic. Two calls at once: the second gets memory of its own.
class Scratch {
 public:
  static constexpr size_t kKept = size_t{8} << 20;

  // Aligned to a cache line, uninitialised. Throws std::bad_alloc.
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return block_; }

 private:
  void* block_;
  bool keep_;
};

// Asks the system for large pages under [data, data + bytes), which is about to be written for the first time. Only
// advice: small ranges and systems without it are left as they are.
void advise_large_pages(void* data, size_t bytes);

}  // namespace customlstm
