/* stats.c - --stats: what the engine's steps did and took, while they run and at the end. On stderr. */
#include "cli.h"
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

enum { LIVE_SECONDS = 2, TEXT = 512 };

/* Sum of the kinds [from, to), later minus earlier. */
static yk_work between(const yk_work *before, const yk_work *now, uint32_t from, uint32_t to)
{
    yk_work sum = {0};
    uint64_t *s = (uint64_t *)&sum;
    for (uint32_t k = from; k < to; k++) {
        const uint64_t *a = (const uint64_t *)&before[k], *b = (const uint64_t *)&now[k];
        for (size_t i = 0; i < sizeof sum / sizeof *s; i++)
            s[i] += b[i] - a[i];
    }
    return sum;
}

static double per(uint64_t part, uint64_t whole)
{
    return whole ? (double)part / (double)whole : 0;
}

static double rate(const yk_work *w)
{
    return w->ns ? 1e9 * (double)w->n_tokens / (double)w->ns : 0;
}

/* Share of a time in which a lane had nothing to do, in per cent. */
static double stall(uint64_t busy, uint64_t ns)
{
    return ns > busy ? 100 * (1 - per(busy, ns)) : 0;
}

static void say_bytes(const yk_cli_opts *opts, const char *what, const yk_work *w, bool device)
{
    char host[32], vram[32], up[32], down[32];
    yk_cli_size_text(w->host_bytes / w->n_tokens, host);
    yk_cli_size_text(w->device_bytes / w->n_tokens, vram);
    yk_cli_size_text(w->up_bytes / w->n_tokens, up);
    yk_cli_size_text(w->down_bytes / w->n_tokens, down);
    if (device)
        yk_cli_note(opts,
                    "stats: %s: %" PRIu64 " tokens in %" PRIu64
                    " steps, %.1f tokens/s; a token: host memory %s, device memory %s, "
                    "link up %s, down %s",
                    what, w->n_tokens, w->n_steps, rate(w), host, vram, up, down);
    else
        yk_cli_note(opts, "stats: %s: %" PRIu64 " tokens in %" PRIu64 " steps, %.1f tokens/s; a token: host memory %s", what,
                    w->n_tokens, w->n_steps, rate(w), host);
}

static void say_lanes(const yk_cli_opts *opts, const char *what, const yk_work *w)
{
    char looked[96] = "gpu and link not looked at yet";
    if (w->n_sampled)
        snprintf(looked, sizeof looked, "gpu %.0f %%, link %.0f %% (%" PRIu64 " steps looked at)",
                 stall(w->gpu_ns, w->sampled_ns), stall(w->link_ns, w->sampled_ns), w->n_sampled);
    yk_cli_note(opts, "stats: %s: stalled: cpu %.0f %%, %s; the host waited %.0f %%", what, stall(w->cpu_ns, w->ns), looked,
                100 * per(w->wait_ns, w->ns));
}

static void say_phase(const yk_cli_opts *opts, const char *what, const yk_work *w, bool device)
{
    char roof[48] = "";
    if (!w->n_tokens)
        return;
    say_bytes(opts, what, w, device);
    if (device && w->experts)
        yk_cli_note(opts, "stats: %s: %" PRIu64 " experts chosen, %.1f %% of them resident", what, w->experts,
                    100 * per(w->experts_resident, w->experts));
    if (device)
        say_lanes(opts, what, w);
    if (w->roof_ns)
        snprintf(roof, sizeof roof, "%.0f %% of the roofline", 100 * per(w->roof_ns, w->ns));
    if (*roof)
        yk_cli_note(opts, "stats: %s: %s", what, roof);
}

/* A step of each kind, measured and predicted. */
static void say_steps(const yk_cli_opts *opts, const yk_work *before, const yk_work *now)
{
    for (uint32_t k = 0; k < YK_N_WORK; k++) {
        const yk_work w = between(before, now, k, k + 1);
        char text[TEXT];
        if (!w.n_steps)
            continue;
        const double ms = 1e-6 * (double)w.ns / (double)w.n_steps, off = per(w.predicted_of_ns, w.predicted_ns);
        const int n =
            snprintf(text, sizeof text, "stats: steps (%s): %" PRIu64 ", %.3f ms each", yk_work_name(k), w.n_steps, ms);
        if (w.predicted_ns && n > 0 && (size_t)n < sizeof text)
            snprintf(text + n, sizeof text - (size_t)n, ", predicted %.3f ms (%+.0f %%)", ms / off, 100 * (off - 1));
        yk_cli_note(opts, "%s", text);
    }
}

void yk_cli_stats_live(yk_cli_session *s, const yk_cli_opts *opts)
{
    if (!opts->stats || isatty(STDOUT_FILENO)) /* the text is there: lines would cut it to pieces */
        return;
    const double now = yk_cli_seconds();
    if (s->live_s <= 0)
        s->live_s = now;
    if (now - s->live_s < LIVE_SECONDS)
        return;
    s->live_s = now;
    yk_engine_get_stats(s->engine, &s->stats);
    const yk_work d = between(s->live, s->stats.work, 0, YK_WORK_DECODE),
                  p = between(s->live, s->stats.work, YK_WORK_PROMPT, YK_N_WORK);
    memcpy(s->live, s->stats.work, sizeof s->live);
    yk_cli_note(opts,
                "stats: now: prompt %" PRIu64 " tokens at %.1f/s, decode %" PRIu64
                " at %.1f/s; hits %.0f %%, cpu stalled %.0f %%, roofline %.0f %%",
                p.n_tokens, rate(&p), d.n_tokens, rate(&d), 100 * per(d.experts_resident, d.experts), stall(d.cpu_ns, d.ns),
                100 * per(d.roof_ns, d.ns));
}

void yk_cli_stats_report(yk_cli_session *s, const yk_cli_opts *opts)
{
    if (!opts->stats || !s->engine)
        return;
    yk_engine_get_stats(s->engine, &s->stats);
    const bool device = strcmp(s->stats.device, "cpu") != 0;
    const yk_work p = between(s->reported, s->stats.work, YK_WORK_PROMPT, YK_N_WORK),
                  d = between(s->reported, s->stats.work, 0, YK_WORK_DECODE);
    say_phase(opts, "prompt", &p, device);
    say_phase(opts, "decode", &d, device);
    say_steps(opts, s->reported, s->stats.work);
    memcpy(s->reported, s->stats.work, sizeof s->reported);
    memcpy(s->live, s->stats.work, sizeof s->live);
}

void yk_cli_stats_skip(yk_cli_session *s)
{
    yk_engine_get_stats(s->engine, &s->stats);
    memcpy(s->reported, s->stats.work, sizeof s->reported);
    memcpy(s->live, s->stats.work, sizeof s->live);
}
