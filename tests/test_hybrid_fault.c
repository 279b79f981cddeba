/* Each allocation of the null module fails once, by its number: the engine ends with a status and a line, nothing is leaked, and where only a step failed
 * the next one gives the same logits as if nothing had happened.
 *
 *   test_hybrid_fault [K]    K: this allocation only
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "src/engine/lane.h"

/* So many numbers one after the other without effect: there are no more allocations. Of optional ones (events of sampled steps) a failure has none. */
enum { N_PROMPT = 20, CONTEXT = 96, BATCH = 48, WHOLE = 1000000000, ENOUGH = 16 };
/* Tokens of the steps: two chunks of prefill, the second at a depth that leaves a block half full. */
static const uint32_t steps[] = {38, 34, 1};
enum { N_STEPS = sizeof steps / sizeof *steps };

/* What one attempt did. */
typedef struct attempt {
    bool opened;
    int failed_steps;
} attempt;

static int fail(uint32_t k, const char *what, const char *text)
{
    printf("FAILED: allocation %u: %s: %s\n", k, what, text);
    return 1;
}

static int check_failure(uint32_t k, yk_status st, const yk_error *err)
{
    if (st != YK_ERR_MEMORY)
        return fail(k, yk_status_name(st), err->text);
    return err->text[0] && !strchr(err->text, '\n') ? 0 : fail(k, "not one line", err->text);
}

static int attempt_at(const yk_model *m, const yk_plan *plan, uint32_t k, float *logits, attempt *a)
{
    yk_error err = {0};
    yk_engine_opts o;
    yk_engine *e;
    yk_seq *seq;
    yk_model_info info;
    char device[64];
    int32_t tokens[CONTEXT];
    yk_model_get_info(m, &info);
    for (int i = 0; i < CONTEXT; i++)
        tokens[i] = 300 + 7 * i;
    snprintf(device, sizeof device, "null:compute,fail=%u", k);
    yk_engine_opts_init(&o);
    o.plan = plan;
    o.device = device;
    o.threads = 2;
    o.context = CONTEXT;
    o.batch = BATCH;
    o.kv_type = YK_KV_F32;
    *a = (attempt){0};
    yk_status st = yk_engine_open(&e, m, &o, &err);
    if (st != YK_OK)
        return check_failure(k, st, &err);
    a->opened = true;
    int bad = yk_seq_open(&seq, e, &err) != YK_OK;
    for (int s = 0; !bad && s < N_STEPS; s++) {
        const yk_batch_entry b = {seq, tokens + yk_seq_length(seq), steps[s], YK_LOGITS_LAST};
        st = yk_decode(e, &b, 1, &err);
        if (st != YK_OK) {
            a->failed_steps++;
            bad = check_failure(k, st, &err) ||
                  (yk_decode(e, &b, 1, &err) != YK_OK && fail(k, "the step behind the failed one", err.text));
        }
        if (!bad)
            memcpy(logits + (size_t)s * info.n_vocab, yk_logits(e, 0, 0), info.n_vocab * sizeof *logits);
    }
    yk_seq_close(&seq);
    yk_engine_close(&e);
    return bad;
}

static const char *const class_names[YK_MEM_N_CLASSES] = {"weights", "kv", "activation", "staging", "plan", "runtime"};

static int same_memory(uint32_t k, const uint64_t *before)
{
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        if (yk_mem_live((yk_mem_class)c) != before[c])
            return fail(k, "memory is left over of class", class_names[c]);
    return 0;
}

/* A step that is the device's alone can be cancelled too, and leaves the sequence as it was. The model is dense: the CPU's
 * workers, which look for the request themselves, route the tokens of a mixture. */
static int cancelled_on_device(void)
{
    yk_error err = {0};
    char path[4096];
    const char *fixtures = getenv("YOKE_FIXTURES");
    yk_model *m;
    snprintf(path, sizeof path, "%s/w256-llama-q4_k_m.gguf", fixtures ? fixtures : ".");
    if (access(path, R_OK) != 0) {
        printf("not tested: cancelling on the device; %s is not there\n", path);
        return 0;
    }
    if (yk_model_open(&m, path, NULL, &err) != YK_OK)
        return fail(0, path, err.text);
    yk_engine_opts o;
    yk_engine *e;
    yk_seq *seq = NULL;
    int32_t tokens[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        tokens[i] = 10 + 7 * i;
    yk_engine_opts_init(&o);
    o.device = "null";
    o.auto_partition = false;
    o.threads = 2;
    o.context = 48;
    if (yk_engine_open(&e, m, &o, &err) != YK_OK || yk_seq_open(&seq, e, &err) != YK_OK)
        return fail(0, "an engine", err.text);
    int bad = 0;
    for (uint32_t i = 0; i < 3 && !bad; i++) {
        const yk_batch_entry b = {seq, tokens, i ? 1 : N_PROMPT, YK_LOGITS_LAST};
        const uint32_t before = yk_seq_length(seq);
        yk_engine_cancel(e);
        yk_status st = yk_decode(e, &b, 1, &err);
        if (st != YK_ERR_CANCELLED || yk_seq_length(seq) != before)
            bad = fail(0, "a cancelled step", yk_status_name(st));
        else if ((st = yk_decode(e, &b, 1, &err)) != YK_OK || yk_seq_length(seq) != before + b.n_tokens)
            bad = fail(0, "the step behind a cancelled one", st == YK_OK ? "wrong length" : err.text);
    }
    yk_seq_close(&seq);
    yk_engine_close(&e);
    yk_model_close(&m);
    return bad;
}

int main(int argc, char **argv)
{
    yk_error err = {0};
    char path[4096];
    const char *source = getenv("YOKE_SOURCE");
    snprintf(path, sizeof path, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", source ? source : ".");
    yk_model *m;
    yk_shape shape;
    yk_plan plan;
    if (yk_model_open(&m, path, NULL, &err) != YK_OK ||
        yk_shape_from_model(&shape, m, &(yk_shape_opts){.bytes = yk_place_bytes}, &err) != YK_OK)
        return fail(0, path, err.text);
    yk_plan_limits limits = {.context = CONTEXT, .max_seqs = 1, .batch = BATCH, .kv_elem_bytes = 4, .n_devices = 1};
    snprintf(limits.devices[0].name, sizeof limits.devices[0].name, "null:0");
    limits.devices[0].budget_bytes = 1ull << 30;
    if (yk_plan_random(&plan, 2, &shape, &limits, &err) != YK_OK || !plan.n_devices)
        return fail(0, "a plan", err.text);
    for (uint32_t l = 1; l < plan.n_layers; l++) { /* all but the first: attention copied in prefill */
        plan.layers[l].attn_home = YK_HOST;
        plan.layers[l].attn_chunk[YK_C_128] = 1 + YK_KIND_CG;
    }
    yk_plan_memory(&plan, &shape, &limits, plan.memory);
    yk_model_info info;
    yk_model_get_info(m, &info);
    const size_t bytes = (size_t)N_STEPS * info.n_vocab * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    uint64_t before[YK_MEM_N_CLASSES];
    for (int c = 0; c < YK_MEM_N_CLASSES; c++)
        before[c] = yk_mem_live((yk_mem_class)c);
    attempt a;
    int bad = cancelled_on_device() || attempt_at(m, &plan, 0, want, &a) || same_memory(0, before);
    uint32_t opens = 0, step_fails = 0, survived = 0, k = argc > 1 ? (uint32_t)atoi(argv[1]) : 1;
    /* Opening: each; of the commands of steps (thousands, and alike) every so many, until no allocation has that number. */
    for (uint32_t stride = 1, last_opened = 0; !bad && k < WHOLE; k += stride) {
        bad = attempt_at(m, &plan, k, got, &a) || same_memory(k, before);
        if (!bad && a.opened && memcmp(want, got, bytes) != 0)
            bad = fail(k, "logits", "others than without a failure");
        opens += !a.opened;
        step_fails += a.failed_steps > 0;
        survived += a.opened && !a.failed_steps;
        last_opened = a.opened && !a.failed_steps ? last_opened + 1 : 0;
        if (last_opened == (step_fails ? ENOUGH : 13 * ENOUGH) || argc > 1)
            break;
        stride = a.opened && step_fails ? 13 : 1;
    }
    printf("failures: %u while opening, %u in steps, %u without effect; last number %u\n", opens, step_fails, survived, k);
    if (!bad && argc < 2 && (opens < 20 || step_fails < 20))
        bad = fail(k, "the run as a whole", "too few failures: is the setting in force?");
    free(want);
    free(got);
    yk_plan_clear(&plan);
    yk_shape_close(&shape);
    yk_model_close(&m);
    return bad;
}
