/* Pseudo-queries of the support set, as P>M>F makes them (Hu et al., CVPR 2022, "DiffAugment"):
 * flip, brightness, saturation, contrast, translation. tvm_tinytrain.adaptation.DiffAugment does
 * the same with the same draws. The mean over the image is summed by rows in float, and over rows
 * in double. */
#ifndef TT_AUGMENT_H
#define TT_AUGMENT_H

#include "tinytrain.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TT_AUGMENT_DRAWS 8

/* Ranges as in DiffAugment; a range of 0 switches a change off. */
typedef struct {
  float probability; /* that an image is changed at all; P>M>F: 0.9 */
  float brightness;  /* added, uniform in +- this; 0.5 */
  float saturation;  /* factor of the distance from the mean over channels, 1 +- this; 1 */
  float contrast;    /* factor of the distance from the mean over the image, 1 +- this; 0.5 */
  float translation; /* share of the size, both ways, filled with 0; 0.125 */
  float flip;        /* probability of mirroring left and right; 0.5 */
} tt_augment_options;

/* P>M>F's values. */
extern const tt_augment_options TT_AUGMENT_DEFAULTS;

/* Float32 image[channels][height][width]. */
typedef struct {
  uint32_t channels;
  uint32_t height;
  uint32_t width;
} tt_augment_shape;

/* Eight numbers in [0, 1) of 24 bits each from a generator (PCG32, O'Neill 2014) whose state is
 * any number; it goes on from call to call. */
void tt_augment_draw(uint64_t *state, float draws[TT_AUGMENT_DRAWS]);

/* Writes the changed image; `out` may not overlap `image`. */
void tt_augment(const tt_augment_options *options, const tt_augment_shape *shape,
                const float draws[TT_AUGMENT_DRAWS], const float *image, float *out);

#ifdef __cplusplus
}
#endif

#endif
