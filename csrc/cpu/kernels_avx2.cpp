// Kernels for CPUs with AVX2, FMA and F16C; called only after cpuid has said so.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include "isa/avx2.h"

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
