/* bench.c - yoke bench: speed of prompts and generation, with llama-bench's names.
 *
 * A test is a prompt of p tokens, a generation of g tokens one by one, or one behind the other, behind `depth` tokens that are
 * already in the sequence and not timed. Tokens are random (seeded): what they are does not change the work of a dense model,
 * and spreads the experts of a sparse one. The first run of a test is not counted. */
#include "cli.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { READ_MS = 150 };

typedef struct bench_row {
    uint32_t n_prompt, n_gen, n_depth, n_batch, n_ubatch;
    uint64_t *samples_ns; /* [n_samples] */
    uint32_t n_samples;
    double avg_ns, stddev_ns, avg_ts, stddev_ts;
    double bytes_per_token; /* weights and, as a mean over the generation, KV that a decoded token reads */
    double read_rate;       /* bytes per second, best of the measurements beside this test; 0 for prompts */
    double roofline_share;  /* NaN for rows without a generation alone */
    yk_engine_stats stats;
    time_t when;
} bench_row;

typedef struct bench_state {
    yk_cli_session session;
    const yk_cli_opts *opts;
    yk_cpu_info cpu;
    uint64_t random;
    int32_t *ids; /* [context] */
    uint32_t context;
    uint32_t test, n_tests;
    bench_row *rows;
    uint32_t n_rows;
} bench_state;

static void test_name(const bench_row *row, char *buf, size_t capacity);

/* ---- running ------------------------------------------------------------------------------------------------------ */

static int32_t random_token(bench_state *b)
{
    b->random ^= b->random << 13; /* xorshift64, Marsaglia 2003 */
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    return (int32_t)((b->random >> 11) % b->session.info.n_vocab);
}

/* Append n random tokens in pieces of -b. */
static int feed_random(bench_state *b, uint32_t n)
{
    yk_cli_session *s = &b->session;
    yk_error err = {0};
    for (uint32_t i = 0; i < n; i++)
        b->ids[i] = random_token(b);
    if (n && yk_seq_length(s->seq) == 0 && s->info.add_bos && s->info.bos >= 0)
        b->ids[0] = s->info.bos;
    for (uint32_t done = 0; done < n;) {
        uint32_t piece = n - done < (uint64_t)b->opts->batch ? n - done : (uint32_t)b->opts->batch;
        yk_batch_entry entry = {s->seq, b->ids + done, piece, done + piece == n ? YK_LOGITS_LAST : YK_LOGITS_NONE};
        if (yk_cli_interrupted())
            return 128 + yk_cli_interrupted();
        if (yk_decode(s->engine, &entry, 1, &err))
            return yk_cli_fail(&err);
        done += piece;
    }
    return YK_EXIT_OK;
}

static int generate_random(bench_state *b, uint32_t n)
{
    int code = YK_EXIT_OK;
    for (uint32_t i = 0; !code && i < n; i++)
        code = feed_random(b, 1);
    return code;
}

static int set_depth(bench_state *b, uint32_t depth)
{
    yk_error err = {0};
    uint32_t now = yk_seq_length(b->session.seq);
    if (now > depth && yk_seq_truncate(b->session.seq, depth, &err))
        return yk_cli_fail(&err);
    return now < depth ? feed_random(b, depth - now) : YK_EXIT_OK;
}

static int read_rate(bench_state *b, bench_row *row)
{
    yk_error err = {0};
    double rate = 0;
    if (yk_measure_read_rate(b->session.stats.threads, READ_MS, &rate, &err))
        return yk_cli_fail(&err);
    if (rate > row->read_rate)
        row->read_rate = rate;
    return YK_EXIT_OK;
}

static void summarise(bench_row *row)
{
    double n = row->n_samples, tokens = (double)row->n_prompt + row->n_gen, ns = 0, ts = 0, ns2 = 0, ts2 = 0;
    for (uint32_t i = 0; i < row->n_samples; i++) {
        ns += (double)row->samples_ns[i] / n;
        ts += tokens * 1e9 / (double)row->samples_ns[i] / n;
    }
    for (uint32_t i = 0; i < row->n_samples; i++) {
        double d = (double)row->samples_ns[i] - ns, e = tokens * 1e9 / (double)row->samples_ns[i] - ts;
        ns2 += d * d;
        ts2 += e * e;
    }
    row->avg_ns = ns;
    row->avg_ts = ts;
    row->stddev_ns = n > 1 ? sqrt(ns2 / (n - 1)) : 0;
    row->stddev_ts = n > 1 ? sqrt(ts2 / (n - 1)) : 0;
    row->roofline_share = row->read_rate > 0 ? row->bytes_per_token * row->avg_ts / row->read_rate : NAN;
}

static int run_test(bench_state *b, bench_row *row)
{
    const yk_engine_stats *stats = &b->session.stats;
    bool decode_only = row->n_gen && !row->n_prompt;
    row->stats = *stats;
    row->when = time(NULL);
    row->n_batch = (uint32_t)b->opts->batch;
    row->n_ubatch = stats->batch;
    double kv_tokens = row->n_gen ? row->n_depth + row->n_prompt + (row->n_gen - 1) / 2.0 : 0;
    row->bytes_per_token = (double)stats->weight_bytes_per_token + kv_tokens * (double)stats->kv_bytes_per_token;
    int code = decode_only ? read_rate(b, row) : YK_EXIT_OK;
    for (uint32_t run = 0; !code && run <= (uint32_t)b->opts->repetitions; run++) {
        if (!yk_cli_progress((void *)b->opts, "bench", b->test * 100ull + run * 100ull / (uint32_t)(b->opts->repetitions + 1),
                             b->n_tests * 100ull))
            return 128 + yk_cli_interrupted();
        if ((code = set_depth(b, row->n_depth)))
            break;
        if (!run) /* nor is what comes before the first one */
            yk_cli_stats_skip(&b->session);
        double start = yk_cli_seconds();
        code = feed_random(b, row->n_prompt);
        if (!code) /* one token warms the generation up; the whole of it would only cost time */
            code = generate_random(b, run || !decode_only ? row->n_gen : 1);
        double seconds = yk_cli_seconds() - start;
        if (run && !code)
            row->samples_ns[row->n_samples++] = seconds > 1e-9 ? (uint64_t)(seconds * 1e9) : 1;
    }
    if (!code && decode_only)
        code = read_rate(b, row);
    if (!code)
        summarise(row);
    if (!code && b->opts->stats) {
        char test[64];
        test_name(row, test, sizeof test);
        yk_cli_progress_clear();
        yk_cli_note(b->opts, "stats: %s, %u threads, with its first run", test, stats->threads);
        yk_cli_stats_report(&b->session, b->opts);
    }
    return code;
}

/* All tests at one thread count. */
static int run_threads(bench_state *b, uint32_t threads)
{
    const yk_cli_opts *o = b->opts;
    int code = yk_cli_open_engine(&b->session, o, b->context, threads, 0);
    for (uint32_t d = 0; !code && d < o->bench_depth.n; d++) {
        uint32_t n_pairs = o->bench_pair.n / 2, n = o->bench_prompt.n + o->bench_gen.n + n_pairs;
        for (uint32_t t = 0; !code && t < n; t++) {
            bench_row row = {.n_depth = o->bench_depth.value[d]};
            if (t < o->bench_prompt.n) {
                row.n_prompt = o->bench_prompt.value[t];
            } else if (t < o->bench_prompt.n + o->bench_gen.n) {
                row.n_gen = o->bench_gen.value[t - o->bench_prompt.n];
            } else {
                uint32_t pair = 2 * (t - o->bench_prompt.n - o->bench_gen.n);
                row.n_prompt = o->bench_pair.value[pair];
                row.n_gen = o->bench_pair.value[pair + 1];
            }
            if (row.n_prompt + row.n_gen == 0)
                continue;
            row.samples_ns = calloc((size_t)o->repetitions, sizeof *row.samples_ns);
            if (!row.samples_ns)
                return yk_cli_no_memory((size_t)o->repetitions * sizeof *row.samples_ns, "the samples");
            code = run_test(b, &row);
            b->rows[b->n_rows++] = row;
            b->test++;
        }
    }
    yk_cli_cancel_target(NULL);
    yk_seq_close(&b->session.seq);
    yk_engine_close(&b->session.engine);
    return code;
}

/* ---- output ------------------------------------------------------------------------------------------------------- */

static void test_name(const bench_row *row, char *buf, size_t capacity)
{
    char depth[24] = "";
    if (row->n_depth)
        snprintf(depth, sizeof depth, " @ d%u", row->n_depth);
    if (row->n_prompt && row->n_gen)
        snprintf(buf, capacity, "pp%u+tg%u%s", row->n_prompt, row->n_gen, depth);
    else
        snprintf(buf, capacity, "%s%u%s", row->n_gen ? "tg" : "pp", row->n_gen ? row->n_gen : row->n_prompt, depth);
}

static void model_type(const yk_model_info *m, char *buf, size_t capacity)
{
    snprintf(buf, capacity, "%s %.2f%c %s", m->architecture, (double)m->n_params / (m->n_params >= 1000000000 ? 1e9 : 1e6),
             m->n_params >= 1000000000 ? 'B' : 'M', m->file_type ? m->file_type : "");
}

static void time_text(const bench_row *row, char *buf, size_t capacity)
{
    struct tm tm;
    if (!gmtime_r(&row->when, &tm) || !strftime(buf, capacity, "%Y-%m-%dT%H:%M:%SZ", &tm))
        buf[0] = 0;
}

static void print_md(const bench_state *b)
{
    char test[64], type[96], size[32];
    model_type(&b->session.info, type, sizeof type);
    yk_cli_size_text(b->session.info.n_bytes, size);
    fprintf(yk_cli_out, "| model | size | params | device | isa | threads | test | t/s | roofline |\n"
                        "| --- | ---: | ---: | --- | --- | ---: | --- | ---: | ---: |\n");
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const bench_row *r = &b->rows[i];
        char share[16] = "";
        test_name(r, test, sizeof test);
        if (isfinite(r->roofline_share))
            snprintf(share, sizeof share, "%.0f %%", 100 * r->roofline_share);
        fprintf(yk_cli_out, "| %s | %s | %.2f M | %s | %s | %u | %s | %.2f ± %.2f | %s |\n", type, size,
                (double)b->session.info.n_params / 1e6, r->stats.device, r->stats.isa, r->stats.threads, test, r->avg_ts,
                r->stddev_ts, share);
    }
}

static void csv_text(const char *text)
{
    fputc('"', yk_cli_out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', yk_cli_out);
        fputc(*text, yk_cli_out);
    }
    fputs("\",", yk_cli_out);
}

static void print_csv(const bench_state *b)
{
    const yk_model_info *m = &b->session.info;
    char type[96], when[32];
    model_type(m, type, sizeof type);
    fprintf(
        yk_cli_out,
        "version,cpu_info,device,isa,plan_id,model_filename,model_type,model_size,model_n_params,n_batch,n_ubatch,n_threads,"
        "type_k,type_v,n_prompt,n_gen,n_depth,test_time,avg_ns,stddev_ns,avg_ts,stddev_ts,bytes_per_token,read_rate,"
        "roofline_share\n");
    for (uint32_t i = 0; i < b->n_rows; i++) {
        const bench_row *r = &b->rows[i];
        const char *const text[] = {yk_version(),    b->cpu.name, r->stats.device, r->stats.isa, r->stats.plan_id,
                                    b->session.path, type};
        for (size_t t = 0; t < sizeof text / sizeof *text; t++)
            csv_text(text[t]);
        time_text(r, when, sizeof when);
        fprintf(yk_cli_out, "%llu,%llu,%u,%u,%u,%s,%s,%u,%u,%u,%s,%.0f,%.0f,%.6f,%.6f,%.0f,", (unsigned long long)m->n_bytes,
                (unsigned long long)m->n_params, r->n_batch, r->n_ubatch, r->stats.threads, b->opts->cache_k, b->opts->cache_v,
                r->n_prompt, r->n_gen, r->n_depth, when, r->avg_ns, r->stddev_ns, r->avg_ts, r->stddev_ts, r->bytes_per_token);
        if (isfinite(r->roofline_share))
            fprintf(yk_cli_out, "%.0f,%.4f\n", r->read_rate, r->roofline_share);
        else
            fprintf(yk_cli_out, ",\n");
    }
}

static json_t *row_json(const bench_state *b, const bench_row *r)
{
    const yk_model_info *m = &b->session.info;
    char type[96], when[32];
    json_t *ns = json_array(), *ts = json_array();
    model_type(m, type, sizeof type);
    time_text(r, when, sizeof when);
    for (uint32_t i = 0; i < r->n_samples; i++) {
        json_array_append_new(ns, json_integer((json_int_t)r->samples_ns[i]));
        json_array_append_new(ts, json_real(((double)r->n_prompt + r->n_gen) * 1e9 / (double)r->samples_ns[i]));
    }
    bool roof = isfinite(r->roofline_share);
    json_t *head =
        json_pack("{s:s, s:o, s:s, s:s, s:s, s:o, s:o, s:I, s:I, s:i, s:i, s:i, s:s, s:s}", "version", yk_version(), "cpu_info",
                  yk_cli_json_text(b->cpu.name, strlen(b->cpu.name)), "device", r->stats.device, "isa", r->stats.isa, "plan_id",
                  r->stats.plan_id, "model_filename", yk_cli_json_text(b->session.path, strlen(b->session.path)), "model_type",
                  yk_cli_json_text(type, strlen(type)), "model_size", (json_int_t)m->n_bytes, "model_n_params",
                  (json_int_t)m->n_params, "n_batch", (int)r->n_batch, "n_ubatch", (int)r->n_ubatch, "n_threads",
                  (int)r->stats.threads, "type_k", b->opts->cache_k, "type_v", b->opts->cache_v);
    json_t *tail =
        json_pack("{s:i, s:i, s:i, s:s, s:I, s:I, s:f, s:f, s:o, s:o, s:I, s:I, s:o, s:o}", "n_prompt", (int)r->n_prompt,
                  "n_gen", (int)r->n_gen, "n_depth", (int)r->n_depth, "test_time", when, "avg_ns", (json_int_t)r->avg_ns,
                  "stddev_ns", (json_int_t)r->stddev_ns, "avg_ts", r->avg_ts, "stddev_ts", r->stddev_ts, "samples_ns", ns,
                  "samples_ts", ts, "bytes_per_token", (json_int_t)r->bytes_per_token, "weight_bytes_per_token",
                  (json_int_t)r->stats.weight_bytes_per_token, "read_rate", roof ? json_real(r->read_rate) : json_null(),
                  "roofline_share", roof ? json_real(r->roofline_share) : json_null());
    if (!head || !tail || json_object_update(head, tail)) {
        json_decref(head);
        head = NULL;
    }
    json_decref(tail);
    return head;
}

static int print_json(const bench_state *b)
{
    json_t *rows = json_array();
    for (uint32_t i = 0; rows && i < b->n_rows; i++) {
        if (json_array_append_new(rows, row_json(b, &b->rows[i]))) {
            json_decref(rows);
            rows = NULL;
        }
    }
    return yk_cli_json_print(rows);
}

/* ---- the command --------------------------------------------------------------------------------------------------- */

static uint32_t largest(const yk_cli_list *list)
{
    uint32_t max = 0;
    for (uint32_t i = 0; i < list->n; i++)
        max = list->value[i] > max ? list->value[i] : max;
    return max;
}

static uint32_t count_above_zero(const yk_cli_list *list)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < list->n; i++)
        n += list->value[i] > 0;
    return n;
}

/* Number of rows and the context that the longest one needs. */
static int plan(bench_state *b)
{
    const yk_cli_opts *o = b->opts;
    uint32_t longest = largest(&o->bench_prompt);
    longest = largest(&o->bench_gen) > longest ? largest(&o->bench_gen) : longest;
    for (uint32_t i = 0; i + 1 < o->bench_pair.n; i += 2)
        if (o->bench_pair.value[i] + o->bench_pair.value[i + 1] > longest)
            longest = o->bench_pair.value[i] + o->bench_pair.value[i + 1];
    b->context = longest + largest(&o->bench_depth);
    b->n_tests = (count_above_zero(&o->bench_prompt) + count_above_zero(&o->bench_gen) + o->bench_pair.n / 2) *
                 o->bench_depth.n * o->bench_threads.n;
    if (!b->n_tests)
        return yk_cli_error(YK_EXIT_USAGE, "-p 0 and -n 0 leave nothing to measure");
    b->rows = calloc(b->n_tests, sizeof *b->rows);
    b->ids = malloc(b->context * sizeof *b->ids);
    return b->rows && b->ids ? YK_EXIT_OK : yk_cli_no_memory(b->context * sizeof *b->ids, "the token ids");
}

int yk_cli_bench(yk_cli_opts *opts)
{
    bench_state b = {.opts = opts, .random = 0x9e3779b97f4a7c15};
    yk_error err = {0};
    int code = plan(&b);
    if (!code && yk_get_cpu_info(&b.cpu, &err))
        code = yk_cli_fail(&err);
    if (!code)
        code = yk_cli_open_model(&b.session, opts, false);
    for (uint32_t i = 0; !code && i < opts->bench_threads.n; i++)
        code = run_threads(&b, opts->bench_threads.value[i]);
    yk_cli_progress_clear();
    if (!code) {
        if (!strcmp(opts->output, "json"))
            code = print_json(&b);
        else if (!strcmp(opts->output, "csv"))
            print_csv(&b);
        else
            print_md(&b);
    }
    for (uint32_t i = 0; i < b.n_rows; i++)
        free(b.rows[i].samples_ns);
    free(b.rows);
    free(b.ids);
    yk_cli_close(&b.session);
    return code;
}
