// The portable build: what every CPU of the architecture can run (SSE2 on x86-64, NEON on AArch64).
#include "kernels.h"

#define CUSTOMLSTM_VECTOR_BYTES 16
#define CUSTOMLSTM_HAS_FMA 0
#define CUSTOMLSTM_ISA_NAME "default"

namespace customlstm {
namespace isa_default {
#include "kernels.inl"
}  // namespace isa_default

const KernelTable* kernels_default() { return &isa_default::kTable; }

}  // namespace customlstm
