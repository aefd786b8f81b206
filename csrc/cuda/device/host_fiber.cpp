#include "host_fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace customlstm {
namespace device {
namespace host {

namespace {

constexpr size_t kSlabStacks = 64;

// Where a stack begins below its upper end. If all began at the same place of a page, their first lines would share a
// few sets of the caches, and every switch would miss.
size_t colour(const void* stack) { return reinterpret_cast<uintptr_t>(stack) / 4096 % 61 * 64; }

size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }
size_t stride() { return kStackBytes + page_bytes(); }

}  // namespace

StackPool::~StackPool() { clear(); }

size_t StackPool::made() const { return slabs_.size() * kSlabStacks; }

void StackPool::clear() {
  for (void* slab : slabs_) munmap(slab, kSlabStacks * stride());
  slabs_.clear();
  free_.clear();
}

void* StackPool::get() {
  if (free_.empty()) {
    void* slab = mmap(nullptr, kSlabStacks * stride(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) throw std::bad_alloc();
    slabs_.push_back(slab);
#if defined(MADV_NOHUGEPAGE)
    madvise(slab, kSlabStacks * stride(), MADV_NOHUGEPAGE);   // a stack uses a few KB of its 64
#endif
    for (size_t i = kSlabStacks; i-- > 0;) {
      char* bottom = static_cast<char*>(slab) + i * stride();
      mprotect(bottom, page_bytes(), PROT_NONE);
      free_.push_back(bottom + page_bytes());
    }
  }
  void* stack = free_.back();
  free_.pop_back();
  return stack;
}

#if defined(__x86_64__)

// swapcontext() asks the system for the signal mask at every switch, which is most of its time. Only what a call must
// leave as it was is saved here; the floating-point modes are the same in all fibers.
extern "C" void customlstm_switch_fiber(void** from, void* to);
asm(R"(
.text
.p2align 4
.hidden customlstm_switch_fiber
.globl customlstm_switch_fiber
.type customlstm_switch_fiber, @function
customlstm_switch_fiber:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size customlstm_switch_fiber, . - customlstm_switch_fiber
)");

void prepare(Context& context, void* stack, void (*entry)()) {
  // Six registers, where to go, and a return address of zero at which the unwinder stops: on entry the stack pointer
  // is 8 below a multiple of 16, as after a call.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack) + kStackBytes - colour(stack));
  for (int i = 1; i <= 8; ++i) top[-i] = 0;
  top[-2] = reinterpret_cast<uintptr_t>(entry);
  context.state = top - 8;
}

void switch_to(Context& from, Context& to) { customlstm_switch_fiber(&from.state, to.state); }

void discard(Context&) {}

#else

namespace {

ucontext_t* of(Context& context) {
  if (!context.state) context.state = new ucontext_t;   // kept: a context lives as long as its thread of a pooled block
  return static_cast<ucontext_t*>(context.state);
}

}  // namespace

void prepare(Context& context, void* stack, void (*entry)()) {
  ucontext_t* u = of(context);
  getcontext(u);
  u->uc_stack.ss_sp = stack;
  u->uc_stack.ss_size = kStackBytes - colour(stack);
  u->uc_link = nullptr;
  makecontext(u, entry, 0);
}

void switch_to(Context& from, Context& to) { swapcontext(of(from), of(to)); }

void discard(Context& context) {
  delete static_cast<ucontext_t*>(context.state);
  context.state = nullptr;
}

#endif

}  // namespace host
}  // namespace device
}  // namespace customlstm
