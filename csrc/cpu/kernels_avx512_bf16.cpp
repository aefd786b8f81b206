// bfloat16 for CPUs with AVX512-BF16, which multiply it with itself; called only after cpuid has said so. The other
// types are those of kernels_avx512.cpp.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include "isa/avx512_bf16.h"

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
