/* The row kernels compiled for AVX2 (see f64_rows.h). */
#include "linalg/kernels/f64_rows.h"

ROW_KERNELS(avx2);
