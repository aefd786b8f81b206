// Number formats and cell kinds, known to the torch side, the CPU kernels and the CUDA kernels alike. Plain data.
#pragma once

#if defined(__CUDACC_RTC__)
#include "cuda/device/nvrtc.h"
#else
#include <cstdint>
#endif

namespace customlstm {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

enum class StorageType : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
constexpr int32_t kStorageTypes = 4;

enum class CellKind : int32_t { kStandard = 0, kConfigurable = 1, kNormalised = 2 };
constexpr int32_t kCellKinds = 3;

// Where layer normalisation acts: on W_ih x, on W_hh h, and on the cell state on its way to h.
enum NormPlace : int32_t { kNormInput = 0, kNormRecurrent = 1, kNormCell = 2 };
constexpr int32_t kNormPlaces = 3;

// What a cell has at most: gates, states besides h, values of a unit that forward keeps for backward, and parameters
// with one value a hidden unit, such as peephole weights. customlstm/limits.py has the same numbers.
constexpr int32_t kMaxGates = 8;
constexpr int32_t kMaxStates = 4;
constexpr int32_t kMaxSaved = 16;
constexpr int32_t kMaxUnitParameters = 8;

}  // namespace customlstm
