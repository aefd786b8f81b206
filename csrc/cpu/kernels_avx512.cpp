// Kernels for CPUs with AVX-512 F, DQ, BW and VL; called only after cpuid has said so.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// Below every include, so that no shared inline function is compiled for this instruction set.
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#define CUSTOMLSTM_VECTOR_BYTES 64
#define CUSTOMLSTM_HAS_FMA 1
#define CUSTOMLSTM_ISA_NAME "avx512"

namespace customlstm {
namespace isa_avx512 {
#include "kernels.inl"
}  // namespace isa_avx512

const KernelTable* kernels_avx512() { return &isa_avx512::kTable; }

}  // namespace customlstm

#else

namespace customlstm {
const KernelTable* kernels_avx512() { return nullptr; }
}  // namespace customlstm

#endif
