// A short array that one load or store moves as a whole: the same for both implementations of the primitives.
#pragma once

namespace customlstm {
namespace device {

template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  static_assert(N > 0 && (N & (N - 1)) == 0 && sizeof(T) * N <= 32, "at most 32 bytes, a power of two");
  T v[N];
};

}  // namespace device
}  // namespace customlstm
