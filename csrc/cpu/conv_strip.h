/* Strips: runs of output pixels whose inputs are gathered, through the prologue, into one packed array. */
#ifndef DICE_CPU_CONV_STRIP_H
#define DICE_CPU_CONV_STRIP_H

#include "cpu/conv_algorithm.h"

enum { DICE_CONV_STRIP_BYTES = 384 * 1024 }; /* of inputs that stay in L2 while the panels pass over them */

/* How many of `all` pixels or patches, of `each` bytes, make a strip of about `bytes`: a multiple of `unit`,
 * at least one unit, but no more than there are. */
size_t dice_conv_strip_length(size_t bytes, size_t each, size_t unit, size_t all);

/* The inputs of output pixels [start, start + count), in raster order of an image `width` wide, to
 * packed (taps, blocks, strip, 16). */
void dice_conv_pack_strip(const dice_conv *conv, const dice_view *x, int32_t width, size_t start,
                          size_t count, size_t strip, float *packed);

#endif
