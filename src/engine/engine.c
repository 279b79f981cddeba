/* Opening and closing an engine: sizes, memory, workers. */
#include "src/engine/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "src/base/env.h"
#include "src/base/log.h"
#include "src/engine/auto.h"
#include "src/engine/lane.h"
#include "src/engine/pack_cache.h"
#include "src/engine/packing.h"
#include "src/engine/rope.h"
#include "src/engine/stages.h"
#include "src/engine/stats.h"
#include "src/engine/swap.h"
#include "src/engine/trace.h"

enum { DEFAULT_CONTEXT = 4096, DEFAULT_BATCH = 512, MIN_BATCH = 32, MAX_BATCH = 16384, MAX_SEQS = 4096, MAX_CONTEXT = 1 << 24 };

void yk_engine_opts_init(yk_engine_opts *opts)
{
    *opts = (yk_engine_opts){.auto_partition = true};
}

/* ---- options ------------------------------------------------------------------------------------------------------------------------- */

yk_status yk_engine_isa(const char *name, yk_isa *isa, yk_error *err)
{
    *isa = yk_isa_best();
    if (!name || !*name)
        name = yk_env_isa();
    if (!name || !*name)
        return YK_OK;
    const yk_isa want = yk_isa_by_name(name);
    if (want == YK_ISA_N || want > *isa || yk_ops_get(want)->isa != want) {
        char have[64] = "";
        for (int i = 0; i <= (int)*isa; i++)
            if (yk_ops_get((yk_isa)i)->isa == (yk_isa)i)
                snprintf(have + strlen(have), sizeof have - strlen(have), " %s", yk_isa_name((yk_isa)i));
        return yk_fail(err, YK_ERR_USAGE, "instruction set %s is not there; this CPU and program have:%s", name, have);
    }
    *isa = want;
    return YK_OK;
}

static yk_status check_opts(const yk_engine_opts *o, yk_error *err)
{
    YK_FAIL_IF(o->threads > YK_MAX_WORKERS, err, YK_ERR_USAGE, "threads %u is outside 1..%d", o->threads, YK_MAX_WORKERS);
    YK_FAIL_IF(o->context > MAX_CONTEXT, err, YK_ERR_USAGE, "context %u is outside 1..%d", o->context, MAX_CONTEXT);
    YK_FAIL_IF(o->max_seqs > MAX_SEQS, err, YK_ERR_USAGE, "max_seqs %u is outside 1..%d", o->max_seqs, MAX_SEQS);
    YK_FAIL_IF(o->batch > MAX_BATCH, err, YK_ERR_USAGE, "batch %u is outside 1..%d", o->batch, MAX_BATCH);
    YK_FAIL_IF(o->kv_type != YK_KV_F16 && o->kv_type != YK_KV_F32, err, YK_ERR_USAGE, "kv_type %d is neither f16 nor f32",
               (int)o->kv_type);
    YK_FAIL_IF((unsigned)o->policy > YK_POLICY_ADAPTIVE, err, YK_ERR_USAGE, "policy %d is neither static nor adaptive",
               (int)o->policy);
    YK_FAIL_IF(o->pack_cache && !*o->pack_cache, err, YK_ERR_USAGE, "pack_cache: the folder has an empty name");
    return YK_OK;
}

/* ---- sizes --------------------------------------------------------------------------------------------------------------------------- */

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static void set_dims(yk_engine *e, const yk_engine_opts *o)
{
    const yk_hparams *hp = &e->model->hp;
    yk_dims *d = &e->d;
    d->n_tokens = o->batch ? o->batch : DEFAULT_BATCH;
    if (d->n_tokens > e->context * (uint64_t)e->max_seqs)
        d->n_tokens = (uint32_t)(e->context * (uint64_t)e->max_seqs);
    d->n_embd = hp->n_embd;
    d->n_q = hp->n_heads * hp->head_dim;
    d->n_kv = hp->n_kv_heads * hp->head_dim;
    d->n_qkv = d->n_q + 2 * d->n_kv;
    const uint32_t used = (hp->n_used ? hp->n_used : 1) + (hp->n_shared_ff ? 1 : 0);
    d->n_parts = hp->n_experts + 1;
    d->n_slots = d->n_tokens * used;
    d->n_ff = max_u32(hp->n_ff, max_u32(hp->n_expert_ff, hp->n_shared_ff));
    d->n_ff = (d->n_ff + 31) / 32 * 32;
    d->n_in = (max_u32(d->n_embd, d->n_q) + 31) / 32 * 32;
    d->n_kv_slices = d->n_tokens / YK_KV_BLOCK + 2 * (e->max_seqs < d->n_tokens ? e->max_seqs : d->n_tokens);
    d->n_att = max_u32(d->n_tokens, YK_ATTN_PARTS);
    d->n_logits = o->logits_rows ? o->logits_rows : e->max_seqs;
    if (d->n_logits > d->n_tokens && d->n_logits > e->context * (uint64_t)e->max_seqs)
        d->n_logits = e->context * e->max_seqs;
    d->max_blocks = (e->context + YK_KV_BLOCK - 1) / YK_KV_BLOCK;
    d->kv_elem = e->kv_f16 ? 2 : 4;
    d->kv_half = (size_t)d->n_kv * YK_KV_BLOCK * d->kv_elem;
}

/* ---- memory -------------------------------------------------------------------------------------------------------------------------- */

/* All takes from the activation arena in one place. Run twice: with a counting arena (base NULL) to learn the size, then for real. */
typedef struct taker {
    yk_arena *arena;
    size_t bytes; /* counted so far, SIZE_MAX after an overflow */
} taker;

static void *take(taker *t, size_t rows, size_t cols, size_t size)
{
    size_t n = 0, bytes = 0;
    if (__builtin_mul_overflow(rows, cols, &n) || __builtin_mul_overflow(n, size, &bytes) ||
        __builtin_add_overflow(t->bytes, bytes + 4096, &t->bytes)) {
        t->bytes = SIZE_MAX / 2;
        return NULL;
    }
    return t->arena ? yk_arena_take(t->arena, n, size, 64) : NULL;
}

static void take_q8(taker *t, yk_q8 *q, size_t rows, size_t cols)
{
    q->n_blocks = (uint32_t)((cols + 31) / 32);
    q->q = take(t, rows, (size_t)q->n_blocks * 32, 1);
    q->scale = take(t, rows, q->n_blocks, sizeof *q->scale);
    q->sum = take(t, rows, (size_t)q->n_blocks * 2, sizeof *q->sum);
}

static void take_buffers(yk_engine *e, taker *t, uint32_t n_workers)
{
    const yk_hparams *hp = &e->model->hp;
    const yk_dims *d = &e->d;
    yk_buffers *b = &e->buf;
    const size_t rows = (size_t)n_workers * d->n_tokens, slots = (size_t)n_workers * d->n_slots;
    b->xa = take(t, rows, d->n_embd, sizeof(float));
    b->xf = take(t, rows, d->n_embd, sizeof(float));
    b->norm = take(t, rows, d->n_in, sizeof(float));
    b->h_row = take(t, slots, d->n_ff, sizeof(float));
    take_q8(t, &b->q8, rows, d->n_in);
    take_q8(t, &b->h_q8, slots, d->n_ff);
    b->qkv = take(t, rows, d->n_qkv, sizeof(float));
    b->q = take(t, rows, d->n_q, sizeof(float));
    b->kv = take(t, (size_t)n_workers * hp->n_layers * d->n_kv_slices, 2 * d->kv_half, 1);
    b->att = take(t, (size_t)n_workers * d->n_att, d->n_q, sizeof(float));
    b->att_state = take(t, (size_t)n_workers * d->n_att, 2 * (size_t)hp->n_heads, sizeof(float));
    b->y = take(t, rows, d->n_embd, sizeof(float));
    b->router = take(t, rows, hp->n_experts, sizeof(float));
    b->ids = take(t, rows, hp->n_used, sizeof(uint32_t));
    b->id_weight = take(t, rows, hp->n_used + 1, sizeof(float));
    b->h = take(t, slots, d->n_ff, sizeof(float));
    b->logits = take(t, (size_t)n_workers * d->n_logits, hp->n_vocab, sizeof(float));
    b->y_dev = e->lane ? take(t, d->n_tokens, d->n_embd, sizeof(float)) : NULL;
    b->group = take(t, n_workers, 1, sizeof(yk_group));
    for (uint32_t w = 0; w < n_workers; w++) {
        yk_group none = {0}, *g = b->group ? &b->group[w] : &none;
        g->part = take(t, d->n_parts, 1, sizeof(uint32_t));
        g->slot0 = take(t, d->n_parts + 1, 1, sizeof(uint32_t));
        g->unit0 = take(t, d->n_parts + 1, 1, sizeof(uint32_t));
        g->token = take(t, d->n_slots, 1, sizeof(uint32_t));
        g->weight = take(t, d->n_slots, 1, sizeof(float));
    }
    e->rope_cs = take(t, e->context, hp->n_rot, sizeof(float));
    e->logits = take(t, d->n_logits, hp->n_vocab, sizeof(float));
    e->entry_row = take(t, e->max_seqs, 1, sizeof *e->entry_row);
    e->entry_rows = take(t, e->max_seqs, 1, sizeof *e->entry_rows);
    e->reserves = take(t, e->max_seqs, 1, sizeof *e->reserves);
    e->seqs = take(t, e->max_seqs, 1, sizeof(yk_seq *));
}

/* Steps take from the arena themselves; an upper bound of what one needs. */
static size_t step_bytes(const yk_engine *e)
{
    const yk_dims *d = &e->d;
    const size_t runs = e->max_seqs < d->n_tokens ? e->max_seqs : d->n_tokens;
    const size_t layers = e->model->hp.n_layers, stages = layers * YK_S_PER_LAYER + 2;
    const size_t work = layers * sizeof(yk_layer_work);
    const size_t slices = layers * d->n_kv_slices + (size_t)YK_S_N_KINDS * YK_MAX_SLICES;
    return d->n_tokens * 24 + runs * (sizeof(yk_run) + (size_t)d->max_blocks * 4) + d->n_kv_slices * sizeof(yk_kv_slice) +
           (size_t)d->n_logits * 8 + stages * (sizeof(yk_stage) + 16) + slices * 8 + work + 33 * 4096;
}

static yk_status check_memory(const yk_engine *e, uint64_t kv_bytes, uint64_t act_bytes, yk_error *err)
{
    yk_cpu_info cpu;
    YK_TRY(yk_topology_info(&cpu, err));
    uint64_t need;
    if (!yk_add_u64(kv_bytes, act_bytes, &need))
        need = UINT64_MAX;
    YK_FAIL_IF(need > cpu.memory_available_bytes, err, YK_ERR_MEMORY,
               "a context of %u tokens for %u sequences needs %" PRIu64 " bytes (KV cache %" PRIu64 ", activations %" PRIu64
               "), available are %" PRIu64 "; use a smaller context or batch",
               e->context, e->max_seqs, need, kv_bytes, act_bytes, cpu.memory_available_bytes);
    return YK_OK;
}

static yk_status open_memory(yk_engine *e, uint64_t want, uint32_t n_workers, yk_error *err)
{
    const yk_hparams *hp = &e->model->hp;
    uint64_t kv_bytes, block_bytes;
    if (want >= UINT32_MAX || !yk_mul_u64(2 * e->d.kv_half, hp->n_layers, &block_bytes) ||
        !yk_mul_u64(want, block_bytes, &kv_bytes))
        return yk_fail(err, YK_ERR_MEMORY, "a KV cache of %" PRIu64 " blocks of 16 tokens is larger than any memory", want);
    e->kv_bytes_per_token = block_bytes / YK_KV_BLOCK;
    taker count = {0};
    take_buffers(e, &count, n_workers);
    const size_t act = count.bytes + YK_N_STEPS * step_bytes(e);
    YK_TRY(check_memory(e, kv_bytes, act, err));
    YK_TRY(yk_kv_open(&e->kv, (uint32_t)want, hp->n_layers, 2 * e->d.kv_half, err));
    YK_TRY(yk_arena_open(&e->act, YK_MEM_ACTIVATION, act, false, err));
    taker real = {.arena = &e->act};
    take_buffers(e, &real, n_workers);
    if (!e->seqs)
        return yk_fail_memory(err, act, "activations");
    return YK_OK;
}

/* ---- statistics ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t mat_bytes(const yk_weight *w)
{
    return w->data || w->mats ? w->row_bytes * w->n_rows : 0;
}

/* Weight bytes one decoded token reads: every matrix of attention and head, the chosen experts only. */
static uint64_t token_bytes(const yk_model *m)
{
    uint64_t sum = mat_bytes(&m->output);
    for (uint32_t i = 0; i < m->hp.n_layers; i++) {
        const yk_layer *l = &m->layers[i];
        sum += mat_bytes(&l->q) + mat_bytes(&l->k) + mat_bytes(&l->v) + mat_bytes(&l->o) + mat_bytes(&l->router);
        sum += (l->moe ? m->hp.n_used : 1) * (mat_bytes(&l->gate) + mat_bytes(&l->up) + mat_bytes(&l->down));
        sum += mat_bytes(&l->sh_gate) + mat_bytes(&l->sh_up) + mat_bytes(&l->sh_down) + mat_bytes(&l->sh_router);
    }
    return sum;
}

void yk_engine_get_stats(const yk_engine *e, yk_engine_stats *s)
{
    *s = (yk_engine_stats){
        .n_tokens = e->n_tokens_done,
        .n_steps = e->n_steps_done,
        .threads = yk_pool_size(e->pool),
        .context = e->context,
        .max_seqs = e->max_seqs,
        .batch = e->d.n_tokens,
        .weight_bytes_per_token = e->weight_bytes_per_token,
        .kv_bytes_per_token = e->kv_bytes_per_token,
        .bytes_weights = yk_mem_live(YK_MEM_WEIGHTS),
        .bytes_kv = yk_mem_live(YK_MEM_KV),
        .bytes_activation = yk_mem_live(YK_MEM_ACTIVATION),
        .bytes_runtime = yk_mem_live(YK_MEM_RUNTIME),
        .rescued_slices = yk_pool_rescued(e->pool),
    };
    snprintf(s->device, sizeof s->device, e->lane ? "cpu + %s" : "cpu%s", e->lane ? e->lane->name : "");
    snprintf(s->isa, sizeof s->isa, "%s", yk_isa_name(e->ops->isa));
    snprintf(s->plan_id, sizeof s->plan_id, "%s", e->plan_id);
    snprintf(s->why, sizeof s->why, "%s", e->why);
    memcpy(s->work, e->stats->work, sizeof s->work);
    const yk_swap *swap = e->lane ? e->lane->swap : NULL;
    snprintf(s->policy, sizeof s->policy, swap ? "adaptive" : "static");
    if (!swap)
        return;
    const yk_swap_sums sums = yk_swap_get(swap);
    s->swaps = sums.swaps;
    s->returns = sums.returns;
    s->kept_bytes = sums.kept_bytes;
}

/* ---- device ------------------------------------------------------------------------------------------------------------------------- */

/* Experts that change places, by what the machine can do: the one a plan was made by, or the user's. */
static yk_status open_swap(yk_engine *e, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                           const yk_engine_opts *o, yk_error *err)
{
    yk_machine *here = NULL;
    if (o->policy != YK_POLICY_ADAPTIVE || !yk_swap_bytes(plan, shape))
        return YK_OK;
    if (!machine)
        YK_TRY(yk_machine_here(&here, e->model, o, err));
    const yk_status st = yk_swap_open(&e->lane->swap, e->lane, plan, shape, machine ? machine : here, err);
    yk_machine_close(&here);
    return st;
}

static yk_status place_on_device(yk_engine *e, const yk_plan *plan, const yk_machine *machine, const yk_engine_opts *o,
                                 yk_error *err)
{
    yk_shape shape;
    YK_TRY(yk_auto_shape(&shape, e->model, err));
    yk_plan_limits limits;
    yk_auto_limits(&limits, e, o);
    yk_auto_limit_device(&limits, e, e->lane->name, e->lane->budget);
    yk_status st = yk_plan_check(plan, &shape, &limits, err);
    e->places = yk_alloc(YK_MEM_PLAN, e->model->hp.n_layers, sizeof *e->places);
    if (st == YK_OK && !e->places)
        st = yk_fail_memory(err, e->model->hp.n_layers * sizeof *e->places, "a placement");
    if (st == YK_OK)
        st = open_swap(e, plan, &shape, machine, o, err);
    if (st == YK_OK)
        st = yk_gpulane_place(e->lane, plan, &shape, o, err);
    snprintf(e->plan_id, sizeof e->plan_id, "%s", plan->plan_id);
    yk_shape_close(&shape);
    return st;
}

/* A plan without a device is checked too: it may be for another model. */
static yk_status check_plan(yk_engine *e, const yk_plan *plan, const yk_engine_opts *o, yk_error *err)
{
    yk_shape shape;
    yk_plan_limits limits;
    YK_TRY(yk_auto_shape(&shape, e->model, err));
    yk_auto_limits(&limits, e, o);
    const yk_status st = yk_plan_check(plan, &shape, &limits, err);
    yk_shape_close(&shape);
    return st;
}

/* ---- open, close --------------------------------------------------------------------------------------------------------------------- */

yk_status yk_engine_set_sizes(yk_engine *e, const yk_engine_opts *o, yk_error *err)
{
    yk_isa isa;
    YK_TRY(check_opts(o, err));
    YK_TRY(yk_engine_isa(o->isa, &isa, err));
    e->ops = yk_ops_get(isa);
    const uint32_t trained = e->model->hp.n_ctx_train;
    e->context = o->context ? o->context : trained < DEFAULT_CONTEXT ? trained : DEFAULT_CONTEXT;
    e->max_seqs = o->max_seqs ? o->max_seqs : 1;
    e->kv_f16 = o->kv_type == YK_KV_F16;
    set_dims(e, o);
    /* A small budget is better spent on weights than on the activations of a long batch. */
    yk_engine_opts smaller = *o;
    const bool chosen_by_us = !o->batch && o->vram_budget_bytes && !(o->device && strcmp(o->device, "cpu") == 0);
    while (chosen_by_us && e->d.n_tokens > MIN_BATCH && yk_gpulane_activation_bytes(e) > o->vram_budget_bytes / 4) {
        smaller.batch = e->d.n_tokens / 2;
        set_dims(e, &smaller);
    }
    return YK_OK;
}

uint64_t yk_engine_kv_blocks(const yk_engine *e, const yk_engine_opts *o)
{
    if (!o->kv_tokens)
        return (uint64_t)e->d.max_blocks * e->max_seqs;
    return o->kv_tokens / YK_KV_BLOCK + (o->kv_tokens % YK_KV_BLOCK != 0);
}

yk_status yk_engine_workers(uint32_t threads, uint32_t *n, yk_error *err)
{
    *n = threads;
    if (threads)
        return YK_OK;
    uint32_t cpus[YK_MAX_WORKERS];
    YK_TRY(yk_topology_cores(cpus, YK_MAX_WORKERS, n, err));
    *n = *n < YK_MAX_WORKERS ? *n : YK_MAX_WORKERS;
    return YK_OK;
}

/* Everything behind the choice of the plan. plan NULL: the CPU alone. */
static yk_status open_parts(yk_engine *e, const yk_plan *plan, const yk_machine *machine, const yk_engine_opts *o,
                            yk_error *err)
{
    uint32_t n_workers;
    YK_TRY(yk_engine_workers(o->threads, &n_workers, err));
    if (o->trace_path)
        YK_TRY(yk_trace_open(&e->trace, o->trace_path, err));
    if (plan && plan->n_devices) {
        const bool settings = o->device && strncmp(o->device, "null:", 5) == 0; /* lane.c */
        YK_TRY(yk_gpulane_open(&e->lane, e, settings ? o->device : plan->devices[0], o->vram_budget_bytes, err));
    }
    e->virtual_worker = n_workers;
    YK_TRY(open_memory(e, yk_engine_kv_blocks(e, o), n_workers + (e->lane ? 1 : 0), err));
    yk_rope_table(e->model, e->context, e->rope_cs);
    const yk_pool_opts po = {.n_workers = n_workers, .scratch_bytes = yk_scratch_map(e, NULL, NULL), .pin = true};
    YK_TRY(yk_pool_open(&e->pool, &po, err));
    if (n_workers > yk_pool_cores(e->pool)) /* they wait for each other at every stage, and then for the scheduler */
        yk_log(YK_LOG_WARN, "%u threads on %u cores that this process may use: more than one for each makes it slower",
               n_workers, yk_pool_cores(e->pool));
    e->weight_bytes_per_token = token_bytes(e->model);
    snprintf(e->plan_id, sizeof e->plan_id, "cpu-only");
    if (o->pack_cache && !o->no_repack)
        YK_TRY(yk_pack_cache_open(&e->cache, e->model, e->d.n_parts, o->pack_cache, err));
    if (e->lane)
        YK_TRY(place_on_device(e, plan, machine, o, err));
    else if (plan)
        YK_TRY(check_plan(e, plan, o, err));
    YK_TRY(yk_engine_pack(e, o, err));
    YK_TRY(yk_engine_pack_finish(e, o, err));
    YK_TRY(yk_stats_open(&e->stats, e, plan, machine, err));
    for (uint32_t i = 0; i < YK_N_STEPS; i++)
        YK_TRY(yk_step_open(&e->steps[i], e, err));
    if (e->trace)
        yk_pool_watch(e->pool, yk_trace_stage, e);
    return YK_OK;
}

/* machine: what the plan was made by; NULL: not known. */
static yk_status open_engine(yk_engine **out, const yk_model *model, const yk_plan *plan, const yk_machine *machine,
                             const char *why, const yk_engine_opts *o, yk_error *err)
{
    yk_engine *e = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *e);
    if (!e)
        return yk_fail_memory(err, sizeof *e, "the engine");
    e->model = model;
    snprintf(e->why, sizeof e->why, "%s", why);
    yk_status st = yk_engine_set_sizes(e, o, err);
    if (st == YK_OK)
        st = open_parts(e, plan, machine, o, err);
    if (st != YK_OK) {
        yk_trace_close(&e->trace, false); /* nothing ran: an older timeline stays */
        yk_engine_close(&e);
    }
    *out = e;
    return st;
}

yk_status yk_engine_open(yk_engine **out, const yk_model *model, const yk_engine_opts *opts, yk_error *err)
{
    *out = NULL;
    YK_FAIL_IF(!model || model->vocab_only, err, YK_ERR_USAGE, "the model was opened for its vocabulary only");
    yk_engine_opts defaults;
    yk_engine_opts_init(&defaults);
    const yk_engine_opts *o = opts ? opts : &defaults;
    YK_FAIL_IF(
        o->plan && yk_auto_has_wishes(o), err, YK_ERR_USAGE,
        "a plan is given: -ngl, -ncmoe, -nkvo and -ot are for the planner; make a new plan with them, or leave them away");
    if (o->plan)
        return open_engine(out, model, o->plan, o->machine, *o->plan->note ? o->plan->note : "as the given plan says", o, err);
    yk_machine *measured = NULL;
    yk_plan *plan = NULL;
    char why[sizeof plan->note];
    yk_error first = {0};
    YK_TRY(yk_auto_choose(&plan, &measured, model, o, why, sizeof why, err));
    const yk_machine *machine = measured ? measured : o->machine;
    yk_status st = open_engine(out, model, plan, machine, why, o, &first);
    if (st != YK_OK && plan && plan->n_devices && yk_auto_may_retreat(o, st)) {
        yk_log(YK_LOG_WARN, "going on with the CPU alone: %s", first.text);
        snprintf(why, sizeof why, "CPU only: %.200s", first.text);
        st = open_engine(out, model, NULL, machine, why, o, err);
    } else if (st != YK_OK && err)
        *err = first;
    yk_plan_close(&plan);
    yk_machine_close(&measured);
    return st;
}

void yk_engine_close(yk_engine **engine)
{
    yk_engine *e = *engine;
    if (!e)
        return;
    const bool opened = e->pool;
    yk_pool_close(&e->pool);
    for (uint32_t i = 0; e->seqs && i < e->max_seqs; i++) {
        yk_seq *seq = e->seqs[i];
        yk_seq_close(&seq);
    }
    yk_gpulane_close(&e->lane);
    yk_trace_close(&e->trace, opened);
    yk_stats_close(&e->stats);
    yk_places_close(&e->places, e->model->hp.n_layers, e->d.n_parts);
    yk_kv_close(&e->kv);
    yk_arena_close(&e->act);
    yk_arena_close(&e->packed);
    yk_arena_close(&e->weights);
    yk_pack_cache_close(&e->cache);
    yk_free(e->mats);
    yk_free(e->parts);
    yk_free(e);
    *engine = NULL;
}
