// The portable build: what every CPU of the architecture can run (SSE2 on x86-64, NEON on AArch64).
#include "kernels.h"

#include "isa/default.h"

namespace customlstm {
namespace isa_default {
#include "kernels.inl"
}  // namespace isa_default

const KernelTable* kernels_default() { return &isa_default::kTable; }

}  // namespace customlstm
