/* rope.h - cosines and sines of rotary positions. */
#ifndef YK_ENGINE_ROPE_H
#define YK_ENGINE_ROPE_H

#include "src/model/model.h"

/* cs [context][n_rot/2][2] = cos, sin of position * frequency, times the magnitude of the scaling.
 * Frequencies: base^(-2i/n_rot) (RoFormer, arXiv 2104.09864), divided by rope_freqs or the long/short factors where the model has them; linear
 * scaling divides them by the factor; YaRN (arXiv 2309.00071, sections 3.2 and 3.4) blends both by wavelength and multiplies the magnitude by
 * 1 + 0.1 ln(factor). Longrope: short factors up to the original context, long ones above (arXiv 2402.13753). Computed in double. */
void yk_rope_table(const yk_model *model, uint32_t context, float *cs);

#endif
