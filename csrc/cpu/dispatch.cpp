#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace customlstm {

namespace {

bool cpu_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool cpu_has_avx512() {
#if defined(__x86_64__)
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool cpu_has_avx512_bf16() {
#if defined(__x86_64__)
  return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// The kernels of AVX-512, with those for bfloat16 that multiply it with itself.
const KernelTable* avx512_with_bf16() {
  static const KernelTable table = [] {
    constexpr int kType = static_cast<int>(StorageType::kBFloat16);
    const KernelTable& own = *kernels_avx512_bf16();
    KernelTable merged = *kernels_avx512();
    merged.name = own.name;
    for (int cell = 0; cell < kCellKinds; ++cell) merged.cells[kType][cell] = own.cells[kType][cell];
    return merged;
  }();
  return &table;
}

const KernelTable& choose() {
  const KernelTable* avx2 = cpu_has_avx2() ? kernels_avx2() : nullptr;
  const KernelTable* avx512 = cpu_has_avx512() ? kernels_avx512() : nullptr;
  const KernelTable* bf16 = cpu_has_avx512_bf16() && kernels_avx512_bf16() ? avx512_with_bf16() : nullptr;
  const char* wanted = std::getenv("CUSTOMLSTM_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    return bf16 ? *bf16 : avx512 ? *avx512 : avx2 ? *avx2 : *kernels_default();
  }
  const std::string name = wanted;
  if (name == "default") return *kernels_default();
  if (name == "avx2" && avx2) return *avx2;
  if (name == "avx512" && avx512) return *avx512;
  if (name == "avx512_bf16" && bf16) return *bf16;
  throw std::runtime_error("the environment variable CUSTOMLSTM_CPU_ISA is \"" + name +
                           "\", but this CPU and build have: default" + (avx2 ? ", avx2" : "") +
                           (avx512 ? ", avx512" : "") + (bf16 ? ", avx512_bf16" : "") +
                           "; unset it to take the best of them");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace customlstm
