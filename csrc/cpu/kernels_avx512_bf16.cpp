// bfloat16 for CPUs with AVX512-BF16, which multiply it with itself; called only after cpuid has said so. The other
// types are those of kernels_avx512.cpp.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

// Below every include, so that no shared inline function is compiled for this instruction set.
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")
#define CUSTOMLSTM_VECTOR_BYTES 64
#define CUSTOMLSTM_HAS_FMA 1
#define CUSTOMLSTM_HAS_BF16 1
#define CUSTOMLSTM_ISA_NAME "avx512_bf16"

namespace customlstm {
namespace isa_avx512_bf16 {
#include "kernels.inl"
}  // namespace isa_avx512_bf16

const KernelTable* kernels_avx512_bf16() { return &isa_avx512_bf16::kTable; }

}  // namespace customlstm

#else

namespace customlstm {
const KernelTable* kernels_avx512_bf16() { return nullptr; }
}  // namespace customlstm

#endif
