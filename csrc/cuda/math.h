// Kinds of arithmetic: storage type T, accumulation type S, and how a warp multiplies a tile of 16 x kDepth weights (A)
// with a tile of kDepth x 8 states (B) into 16 x 8 sums. All kinds share the layout of the sums, that of mma.sync: a
// lane holds rows lane / 4 and + 8 of columns 2 * (lane % 4) and + 1. A and B are stored in the order in which the
// lanes read them, so that every access is one contiguous vector a lane:
//
//   a_offset(row, k), b_offset(k, column)   where an element lies within its stored tile
//   a_index(lane, v), b_index(lane, v)      where a lane's v-th vector lies, in words
#pragma once

#include "device/device.h"
#include "tiling.h"

namespace customlstm {
namespace cuda {

template <MathKind kKind>
struct Math;

// Plain multiply-adds, float or double: rows and columns of a tile one after the other, each with its four depths.
template <class Number, MathKind kMathKind>
struct FmaMath {
  using T = Number;
  using S = Number;
  using Element = Number;
  using Word = Number;
  static constexpr MathKind kKind = kMathKind;
  static constexpr int kDepth = 4, kWordElements = 1;
  static constexpr int kAVectors = 2, kBVectors = 2, kAWidth = 4, kBWidth = 4;

  static CUSTOMLSTM_DEVICE int a_offset(int row, int k) { return row * kDepth + k; }
  static CUSTOMLSTM_DEVICE int b_offset(int k, int column) { return column * kDepth + k; }
  static CUSTOMLSTM_DEVICE int a_index(int lane, int v) { return (lane / 4 + 8 * v) * kDepth; }
  static CUSTOMLSTM_DEVICE int b_index(int lane, int v) { return (2 * (lane % 4) + v) * kDepth; }

  static CUSTOMLSTM_DEVICE S widen(T x) { return x; }
  static CUSTOMLSTM_DEVICE T narrow(S x) { return x; }
  static CUSTOMLSTM_DEVICE Element to_element(S x) { return x; }

  template <class A, class B>
  static CUSTOMLSTM_DEVICE void multiply(S (&sums)[4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      sums[0] += a.v[0].v[k] * b.v[0].v[k];
      sums[1] += a.v[0].v[k] * b.v[1].v[k];
      sums[2] += a.v[1].v[k] * b.v[0].v[k];
      sums[3] += a.v[1].v[k] * b.v[1].v[k];
    }
  }
};
template <>
struct Math<MathKind::kFma32> : FmaMath<float, MathKind::kFma32> {};
template <>
struct Math<MathKind::kFma64> : FmaMath<double, MathKind::kFma64> {};

// Tensor cores, 16-bit operands: m16n8k16. A word holds two neighbours along the depth.
template <class Storage, MathKind kMathKind>
struct Mma16Math {
  using T = Storage;
  using S = float;
  using Element = uint16_t;
  using Word = uint32_t;
  static constexpr MathKind kKind = kMathKind;
  static constexpr int kDepth = 16, kWordElements = 2;
  static constexpr int kAVectors = 1, kBVectors = 1, kAWidth = 4, kBWidth = 2;

  static CUSTOMLSTM_DEVICE int a_offset(int row, int k) {
    return ((row % 8) * 4 + (k % 8) / 2) * 8 + (row / 8 + 2 * (k / 8)) * 2 + k % 2;
  }
  static CUSTOMLSTM_DEVICE int b_offset(int k, int column) {
    return (column * 4 + (k % 8) / 2) * 4 + (k / 8) * 2 + k % 2;
  }
  static CUSTOMLSTM_DEVICE int a_index(int lane, int) { return lane * 4; }
  static CUSTOMLSTM_DEVICE int b_index(int lane, int) { return lane * 2; }
};
template <>
struct Math<MathKind::kBFloat16> : Mma16Math<BFloat16, MathKind::kBFloat16> {
  static CUSTOMLSTM_DEVICE S widen(T x) { return device::to_float(x); }
  static CUSTOMLSTM_DEVICE T narrow(S x) { return device::to_bf16(x); }
  static CUSTOMLSTM_DEVICE Element to_element(S x) { return narrow(x).bits; }
  template <class A, class B>
  static CUSTOMLSTM_DEVICE void multiply(S (&sums)[4], const A& a, const B& b) {
    device::mma_bf16(sums, a.v[0].v, b.v[0].v);
  }
};
template <>
struct Math<MathKind::kFloat16> : Mma16Math<Half, MathKind::kFloat16> {
  static CUSTOMLSTM_DEVICE S widen(T x) { return device::to_float(x); }
  static CUSTOMLSTM_DEVICE T narrow(S x) { return device::to_half(x); }
  static CUSTOMLSTM_DEVICE Element to_element(S x) { return narrow(x).bits; }
  template <class A, class B>
  static CUSTOMLSTM_DEVICE void multiply(S (&sums)[4], const A& a, const B& b) {
    device::mma_f16(sums, a.v[0].v, b.v[0].v);
  }
};

// Tensor cores, float32 rounded to 10 bits of mantissa: m16n8k8.
template <>
struct Math<MathKind::kTf32> {
  using T = float;
  using S = float;
  using Element = uint32_t;
  using Word = uint32_t;
  static constexpr MathKind kKind = MathKind::kTf32;
  static constexpr int kDepth = 8, kWordElements = 1;
  static constexpr int kAVectors = 1, kBVectors = 1, kAWidth = 4, kBWidth = 2;

  static CUSTOMLSTM_DEVICE int a_offset(int row, int k) { return ((row % 8) * 4 + k % 4) * 4 + row / 8 + 2 * (k / 4); }
  static CUSTOMLSTM_DEVICE int b_offset(int k, int column) { return (column * 4 + k % 4) * 2 + k / 4; }
  static CUSTOMLSTM_DEVICE int a_index(int lane, int) { return lane * 4; }
  static CUSTOMLSTM_DEVICE int b_index(int lane, int) { return lane * 2; }

  static CUSTOMLSTM_DEVICE S widen(T x) { return x; }
  static CUSTOMLSTM_DEVICE T narrow(S x) { return x; }
  static CUSTOMLSTM_DEVICE Element to_element(S x) { return device::to_tf32(x); }
  template <class A, class B>
  static CUSTOMLSTM_DEVICE void multiply(S (&sums)[4], const A& a, const B& b) {
    device::mma_tf32(sums, a.v[0].v, b.v[0].v);
  }
};

// A lane's part of one tile.
template <class M>
struct TileA {
  device::Vector<typename M::Word, M::kAWidth> v[M::kAVectors];
};
template <class M>
struct TileB {
  device::Vector<typename M::Word, M::kBWidth> v[M::kBVectors];
};

// Sizes of stored tiles.
template <class M>
struct TileSize {
  static constexpr int kAElements = kTileRows * M::kDepth, kBElements = kTileColumns * M::kDepth;
  static constexpr int kAWords = kAElements / M::kWordElements, kBWords = kBElements / M::kWordElements;
};

}  // namespace cuda
}  // namespace customlstm
