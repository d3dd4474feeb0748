/* Rows in double, compiled for avx512 (see f64_rows.h). */
#include "linalg/kernels/f64_rows.h"

ROW_KERNELS(avx512);
