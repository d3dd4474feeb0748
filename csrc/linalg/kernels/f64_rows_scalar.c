/* The row kernels in plain C (see f64_rows.h). */
#include "linalg/kernels/f64_rows.h"

ROW_KERNELS(scalar);
