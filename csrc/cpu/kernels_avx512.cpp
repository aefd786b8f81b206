// Kernels for CPUs with AVX-512 F, DQ, BW and VL; called only after cpuid has said so.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include "isa/avx512.h"

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
