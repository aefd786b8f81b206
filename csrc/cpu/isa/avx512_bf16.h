// What is compiled for CPUs with AVX512-BF16, for the kernels that multiply bfloat16 with itself. Include it after
// every other header, so that no shared inline function is compiled for this instruction set.
#pragma once

#include <immintrin.h>

#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c")
#define CUSTOMLSTM_VECTOR_BYTES 64
#define CUSTOMLSTM_HAS_FMA 1
#define CUSTOMLSTM_HAS_BF16 1
#define CUSTOMLSTM_ISA_NAME "avx512_bf16"
