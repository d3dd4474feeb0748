/* The row kernels compiled for AVX-512 (see f64_rows.h). */
#include "linalg/kernels/f64_rows.h"

ROW_KERNELS(avx512);
