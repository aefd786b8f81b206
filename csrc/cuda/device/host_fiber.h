// Fibers of the host executor: stacks, and the switch from one to another.
#pragma once

#include <cstddef>
#include <vector>

namespace customlstm {
namespace device {
namespace host {

constexpr size_t kStackBytes = 64 * 1024;

// Stacks are made once and used again. Below each lies a page that must not be touched: a kernel whose locals do not
// fit ends with a segmentation fault instead of overwriting a neighbour.
class StackPool {
 public:
  ~StackPool();
  void* get();                    // the lower end of kStackBytes
  void put(void* stack) { free_.push_back(stack); }
  size_t made() const;            // stacks that there are, in use or not
  void clear();                   // gives all of them back to the system; none may be in use

 private:
  std::vector<void*> slabs_, free_;
};

// A suspended flow of control. switch_to() saves the present one in `from` and goes on with `to`.
struct Context {
  void* state = nullptr;
};
void prepare(Context& context, void* stack, void (*entry)());   // entry never returns
void switch_to(Context& from, Context& to);
void discard(Context& context);   // of a fiber that is not resumed any more

}  // namespace host
}  // namespace device
}  // namespace customlstm
