/* Rows in double, in plain C (see f64_rows.h). */
#include "cpu/kernels/f64_rows.h"

ROW_KERNELS(scalar);
