/* fit.h - a line through measured times that are disturbed: most are right, some are far too long. */
#ifndef YK_PROFILER_FIT_H
#define YK_PROFILER_FIT_H

#include <stdbool.h>
#include <stdint.h>

enum { YK_FIT_SAMPLES = 192, YK_FIT_SIZES = 9, YK_FIT_LEAST = 5 };
#define YK_FIT_INTERVAL 0.03 /* a fit is settled when the rate's 95 % interval is this to either side, */
#define YK_FIT_DRIFT    0.05 /* when the best deciles of its rounds differ by no more than this, */
#define YK_FIT_SPREAD   0.10 /* and the times of one size spread by no more than this */

/* What else had the processors while a time was taken: it cannot be said; something; nothing that this system knows of. */
typedef enum yk_company { YK_COMPANY_UNKNOWN, YK_COMPANY_OTHERS, YK_COMPANY_NONE } yk_company;

/* Times of an item. A round is a visit; the item is visited at least twice, with the others between. */
typedef struct yk_samples {
    uint32_t n;
    struct {
        double x, ns;
        uint32_t round;
        yk_company company;
    } v[YK_FIT_SAMPLES];
} yk_samples;

/* Add a time; when there is no room, the oldest one of the round with most samples goes. */
void yk_samples_add(yk_samples *s, double x, double ns, uint32_t round);
void yk_samples_add_pass(yk_samples *s, double x, double ns, uint32_t round, yk_company company);

typedef struct yk_line {
    double ns, per_s, best_per_s, spread; /* as yk_fit of partition/machine.h */
    double interval;                      /* of per_s: half width as a share of it */
    double drift;                         /* between rounds: difference of best deciles at the largest x, as a share */
    uint32_t n, kept;
    bool settled; /* at least YK_FIT_LEAST samples of each x, and within the three limits */
} yk_line;

/* t = ns + x / per_s. Of an x with YK_FIT_LEAST times of YK_COMPANY_NONE these count, up to three times their best decile (longer ones are stalls that
 * a few passes cannot weigh): their mean is what many passes in a row get. Of another x, times of more than one and a half of the best decile do not
 * count: something else had the processor; of the rest, times further than three deviations (1.48 median absolute deviations) from the median are
 * dropped. The line through what counts minimises relative errors; a negative ns is set to 0 and the slope fitted again. With one x, or
 * `proportional`, ns is 0. */
void yk_fit_line(yk_samples *s, bool proportional, yk_line *out);
/* Share p (0 to 1) of the sorted times of size x; 0 when there are none. */
double yk_samples_quantile(const yk_samples *s, double x, double p);
/* The factor on a work's time while another one goes on, when it took `ns`, takes `alone_ns` undisturbed, and was disturbed for `busy_ns` of its
 * time; at least 1. */
double yk_slowdown(double ns, double alone_ns, double busy_ns);

#endif
