// What the kernels need of the standard headers where NVRTC compiles them: it has none, and of their contents only the
// mathematical functions, memcpy and printf.
#pragma once

using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long;   // as nvcc has it on Linux: the arguments of a kernel are laid out alike on both sides
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long;

static_assert(sizeof(int64_t) == 8 && sizeof(void*) == 8, "a 64-bit system with 64-bit long");
