#include "src/engine/rope.h"

#include <math.h>

static double clamp01(double x)
{
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

void yk_rope_table(const yk_model *model, uint32_t context, float *cs)
{
    const yk_hparams *hp = &model->hp;
    const uint32_t half = hp->n_rot / 2;
    const double base = hp->rope_base, factor = hp->rope_factor;
    const float *divide = model->rope_freqs;
    double magnitude = hp->rope_attn_factor;
    if (!divide)
        divide = context > hp->rope_orig_ctx ? model->rope_long : model->rope_short;

    /* YaRN: dimensions below `low` keep their frequency, those above `high` are interpolated. */
    double low = 0, high = 0;
    if (hp->rope_scaling == YK_ROPE_YARN) {
        low = floor(hp->n_rot * log(hp->rope_orig_ctx / (hp->yarn_beta_fast * 2 * M_PI)) / (2 * log(base)));
        high = ceil(hp->n_rot * log(hp->rope_orig_ctx / (hp->yarn_beta_slow * 2 * M_PI)) / (2 * log(base)));
        low = fmax(low, 0);
        high = fmin(high, hp->n_rot - 1.0);
        magnitude *= 1 + 0.1 * log(factor);
    }
    for (uint32_t i = 0; i < half; i++) {
        double f = pow(base, -2.0 * i / hp->n_rot);
        if (divide)
            f /= divide[i];
        if (hp->rope_scaling == YK_ROPE_LINEAR)
            f /= factor;
        if (hp->rope_scaling == YK_ROPE_YARN) {
            const double keep = 1 - clamp01((i - low) / fmax(0.001, high - low));
            f = f / factor * (1 - keep) + f * keep;
        }
        for (uint32_t p = 0; p < context; p++) {
            cs[((size_t)p * half + i) * 2] = (float)(cos(p * f) * magnitude);
            cs[((size_t)p * half + i) * 2 + 1] = (float)(sin(p * f) * magnitude);
        }
    }
}
