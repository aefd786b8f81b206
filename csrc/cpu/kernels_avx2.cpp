// Kernels for CPUs with AVX2, FMA and F16C; called only after cpuid has said so.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// Below every include, so that no shared inline function is compiled for this instruction set.
#pragma GCC target("avx2,fma,f16c")
#define CUSTOMLSTM_VECTOR_BYTES 32
#define CUSTOMLSTM_HAS_FMA 1
#define CUSTOMLSTM_ISA_NAME "avx2"

namespace customlstm {
namespace isa_avx2 {
#include "kernels.inl"
}  // namespace isa_avx2

const KernelTable* kernels_avx2() { return &isa_avx2::kTable; }

}  // namespace customlstm

#else

namespace customlstm {
const KernelTable* kernels_avx2() { return nullptr; }
}  // namespace customlstm

#endif
