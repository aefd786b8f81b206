// What is compiled for every CPU of the architecture (SSE2 on x86-64, NEON on AArch64).
#pragma once

#define CUSTOMLSTM_VECTOR_BYTES 16
#define CUSTOMLSTM_HAS_FMA 0
#define CUSTOMLSTM_ISA_NAME "default"
