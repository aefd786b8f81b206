// What is compiled for CPUs with AVX2, FMA and F16C. Include it after every other header, so that no
// shared inline function is compiled for this instruction set.
#pragma once

#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define CUSTOMLSTM_VECTOR_BYTES 32
#define CUSTOMLSTM_HAS_FMA 1
#define CUSTOMLSTM_ISA_NAME "avx2"
