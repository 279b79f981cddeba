/* Building and running one step. */
#include "src/engine/stages.h"
#include "src/engine/stats.h"

size_t yk_scratch_map(const yk_engine *e, void *base, yk_scratch *s)
{
    const yk_hparams *hp = &e->model->hp;
    const size_t n_list = (size_t)e->d.n_slots + 2 * (size_t)e->d.n_parts + e->d.n_tokens;
    const size_t n_row = (size_t)e->d.n_qkv + hp->n_experts;
    const size_t n_tile = (size_t)YK_TOKEN_TILE * 2 * YK_ROWS_MAX;
    const size_t n_heads = hp->n_heads / hp->n_kv_heads; /* that share a kv head */
    const size_t n_scores = n_heads * e->d.max_blocks * YK_KV_BLOCK;
    size_t at = 0;
    uint8_t *b = base;
#define TAKE(field, n)                                                                                                         \
    do {                                                                                                                       \
        if (b)                                                                                                                 \
            s->field = (void *)(b + at);                                                                                       \
        at += ((n) * sizeof *s->field + 63) / 64 * 64;                                                                         \
    } while (0)
    TAKE(rows, n_list);
    TAKE(tile, n_tile);
    TAKE(row, n_row);
    TAKE(k_blocks, (size_t)e->d.max_blocks);
    TAKE(v_blocks, (size_t)e->d.max_blocks);
    TAKE(scores, n_scores);
    TAKE(part, YK_KV_BLOCK * n_heads * hp->head_dim);
    TAKE(part_state[0], YK_KV_BLOCK * n_heads * 2);
    TAKE(part_state[1], YK_KV_BLOCK * n_heads * 2);
#undef TAKE
    return at;
}

/* ---- tokens ------------------------------------------------------------------------------------------------------------------------- */

yk_step *yk_step_begin(yk_engine *engine)
{
    yk_step *step = &engine->steps[engine->next_step];
    engine->next_step = (engine->next_step + 1) % YK_N_STEPS;
    yk_pool_wait_job(engine->pool, &step->job);
    step->n_tokens = step->n_runs = step->n_kv_slices = step->n_logits = 0;
    return step;
}

void yk_step_add(yk_step *step, const yk_run_opts *o)
{
    const yk_dims *d = &step->engine->d;
    yk_run *run = &step->runs[step->n_runs];
    *run = (yk_run){.seq = o->seq,
                    .pos = o->pos,
                    .first = step->n_tokens,
                    .n = o->n,
                    .kv_slice0 = step->n_kv_slices,
                    .n_kv_slices = yk_kv_slices_of(o->pos, o->n),
                    .read_first = o->read_first,
                    .copied = o->copied};
    memcpy(step->tables + (size_t)step->n_runs * d->max_blocks, o->seq->blocks, o->pos / YK_KV_BLOCK * sizeof *step->tables);
    for (uint32_t i = 0; i < o->n;) {
        const uint32_t pos = o->pos + i, old = pos % YK_KV_BLOCK;
        const uint32_t n = YK_KV_BLOCK - old < o->n - i ? YK_KV_BLOCK - old : o->n - i;
        for (uint32_t j = 0; j < n; j++) {
            step->tokens[step->n_tokens + j] = o->tokens[i + j];
            step->pos[step->n_tokens + j] = pos + j;
            step->kv_slice_of[step->n_tokens + j] = step->n_kv_slices;
        }
        step->kv_slices[step->n_kv_slices++] =
            (yk_kv_slice){.run = step->n_runs, .block = pos / YK_KV_BLOCK, .first = step->n_tokens, .n = n, .old = old};
        step->n_tokens += n;
        i += n;
    }
    for (uint32_t i = o->logits_first; i < o->n; i++) {
        step->logits_token[step->n_logits] = run->first + i;
        step->logits_row[step->n_logits++] = o->row + (i - o->logits_first);
    }
    step->n_runs++;
}

/* ---- the job ------------------------------------------------------------------------------------------------------------------------- */

typedef void (*slice_fn)(const yk_stage *, uint32_t, yk_worker *);
typedef uint32_t (*prepare_fn)(const yk_stage *, yk_worker *);

static const struct {
    const char *name;
    prepare_fn prepare;
    slice_fn run;
} stage_table[YK_S_N_KINDS] = {
    [YK_S_ATTN_IN] = {"attn_in", NULL, yk_stage_attn_in},
    [YK_S_QKV] = {"qkv", yk_prepare_rows_in, yk_stage_qkv},
    [YK_S_ROPE_KV] = {"rope_kv", NULL, yk_stage_rope_kv},
    [YK_S_ATTN] = {"attn", NULL, yk_stage_attn},
    [YK_S_O_IN] = {"o_in", NULL, yk_stage_o_in},
    [YK_S_O] = {"o", yk_prepare_rows_in, yk_stage_o},
    [YK_S_FFN_IN] = {"ffn_in", NULL, yk_stage_ffn_in},
    [YK_S_ROUTER] = {"router", yk_prepare_rows_in, yk_stage_router},
    [YK_S_ROUTE] = {"route", NULL, yk_stage_route},
    [YK_S_GROUP] = {"group", NULL, yk_stage_group},
    [YK_S_GATE_UP] = {"gate_up", yk_prepare_gate_up, yk_stage_gate_up},
    [YK_S_H_IN] = {"h_in", yk_prepare_h_in, yk_stage_h_in},
    [YK_S_DOWN] = {"down", yk_prepare_down, yk_stage_down},
    [YK_S_HEAD_IN] = {"head_in", NULL, yk_stage_head_in},
    [YK_S_HEAD] = {"head", yk_prepare_head, yk_stage_head},
};

/* Slices of a stage for n tokens of which n_logits want logits and that touch n_kv staged blocks; an upper bound where the number depends
 * on routing. */
typedef struct step_size {
    uint32_t n_tokens, n_kv, n_logits;
} step_size;

/* The most gate_up slices: the largest parts are active. Without a step (sizes at opening), every part is whole. */
static uint32_t gate_up_slices(const yk_step *step, uint32_t layer, uint32_t n_tokens)
{
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[layer];
    const uint32_t n_parts = l->moe ? l->gate.n_mats : 1;
    const uint64_t chosen = l->moe ? (uint64_t)n_tokens * e->model->hp.n_used : 1;
    uint32_t most = 0;
    for (uint32_t p = 0; p < n_parts; p++) {
        const uint32_t n = yk_gate_up_chunks(step, layer, p);
        most = n > most ? n : most;
        if (!e->places)
            break; /* all alike */
    }
    const uint32_t active = chosen < n_parts ? (uint32_t)chosen : n_parts;
    return active * most + (l->sh_gate.data ? yk_gate_up_chunks(step, layer, n_parts) : 0);
}

static uint32_t slices_of(const yk_step *step, uint32_t layer, enum yk_stage_kind kind, step_size z)
{
    const yk_engine *e = step->engine;
    const yk_layer *l = &e->model->layers[layer];
    const uint32_t token_slices = yk_ceil_div(z.n_tokens, YK_TOKEN_SLICE);
    switch (kind) {
    case YK_S_ATTN_IN:
    case YK_S_O_IN:
    case YK_S_FFN_IN:
        return token_slices;
    case YK_S_QKV:
        return yk_rows_of(&l->q, z.n_tokens).n_slices + yk_rows_of(&l->k, z.n_tokens).n_slices +
               yk_rows_of(&l->v, z.n_tokens).n_slices;
    case YK_S_ROPE_KV:
        return z.n_kv;
    case YK_S_ATTN:
        return (yk_attn_split(step, layer) ? step->n_attn_parts : z.n_kv) * e->model->hp.n_kv_heads;
    case YK_S_O:
        return yk_rows_of(&l->o, z.n_tokens).n_slices;
    case YK_S_ROUTER:
        return l->moe ? yk_rows_of(&l->router, z.n_tokens).n_slices : 0;
    case YK_S_ROUTE:
        return l->moe ? token_slices : 0;
    case YK_S_GROUP:
        return l->moe ? 1 : 0;
    case YK_S_GATE_UP:
        return gate_up_slices(step, layer, z.n_tokens);
    case YK_S_H_IN:
        return yk_ceil_div(l->moe ? z.n_tokens * e->d.n_slots / e->d.n_tokens : z.n_tokens, YK_TOKEN_SLICE);
    case YK_S_DOWN:
        return yk_rows_of(&l->down, z.n_tokens).n_slices;
    case YK_S_HEAD_IN:
        return yk_ceil_div(z.n_logits, YK_TOKEN_SLICE);
    case YK_S_HEAD:
        return z.n_logits ? yk_rows_of(&e->model->output, z.n_logits).n_slices : 0;
    case YK_S_N_KINDS:
        break;
    }
    return 0;
}

static uint32_t n_stages_of(const yk_engine *e)
{
    return e->model->hp.n_layers * YK_S_PER_LAYER + 2;
}

/* With a placement: does the pool have anything to do in this stage? (Or the device's rows are published as its result.) */
static bool runs_here(const yk_step *step, uint32_t layer, enum yk_stage_kind kind)
{
    const yk_engine *e = step->engine;
    const yk_layer_place *pl = &e->places[layer];
    const bool cpu = pl->cpu_part[step->bucket], moe = e->model->layers[layer].moe && !yk_list_on_device(step, layer);
    const bool attn_dev = yk_attn_on_device(step, layer);
    switch (kind) {
    case YK_S_FFN_IN:
        return !attn_dev || cpu || moe;
    case YK_S_ROUTE:
    case YK_S_GROUP:
        return moe;
    case YK_S_GATE_UP:
    case YK_S_H_IN:
    case YK_S_DOWN:
        return cpu;
    case YK_S_HEAD_IN:
    case YK_S_HEAD:
        return !e->head_dev;
    default:
        return !attn_dev;
    }
}

static void build_job(yk_step *step)
{
    const yk_engine *e = step->engine;
    const uint32_t n_layers = e->model->hp.n_layers, n = n_stages_of(e);
    const step_size z = {step->n_tokens, step->n_kv_slices, step->n_logits};
    for (uint32_t i = 0; i < n; i++) {
        yk_stage *st = &step->job.stages[i];
        const bool tail = i >= n_layers * YK_S_PER_LAYER;
        const enum yk_stage_kind kind = tail ? YK_S_HEAD_IN + (i - n_layers * YK_S_PER_LAYER) : i % YK_S_PER_LAYER;
        st->layer = tail ? n_layers - 1 : i / YK_S_PER_LAYER;
        st->max_slices = e->places && !runs_here(step, st->layer, kind) ? 0 : slices_of(step, st->layer, kind, z);
        st->prepare = st->max_slices ? stage_table[kind].prepare : NULL;
    }
    yk_group_dense(step, &step->dense);
}

/* Are slices of whole rows too few to keep all workers busy? Bits do not depend on the answer. */
static bool split_pays(const yk_step *step, uint32_t most_parts)
{
    const uint64_t workers = yk_pool_size(step->engine->pool), n_heads = step->engine->model->hp.n_kv_heads;
    const uint64_t n_slices = step->n_kv_slices * n_heads, all = step->n_attn_parts * n_heads;
    if (most_parts == 1 || workers == 1 || most_parts * workers * 8 <= all)
        return false;
    if (most_parts * n_slices != all) /* of different lengths */
        return true;
    return 10 * n_slices < 9 * workers * ((n_slices + workers - 1) / workers);
}

static void plan_attention(yk_step *step)
{
    const uint32_t limit = yk_attn_parts_max(step->engine);
    uint32_t n_parts = 0, n_rows = 0, most = 1;
    for (uint32_t i = 0; i < step->n_kv_slices && n_parts <= limit; i++) {
        yk_kv_slice *ks = &step->kv_slices[i];
        ks->n_parts = yk_attn_parts(ks->block);
        ks->part0 = n_parts, ks->row0 = n_rows;
        most = ks->n_parts > most ? ks->n_parts : most;
        n_parts += ks->n_parts;
        n_rows += ks->n_parts * ks->n;
    }
    step->n_attn_parts = n_parts;
    step->attn_split = n_parts <= limit && n_rows <= step->engine->d.n_att && split_pays(step, most);
}

yk_status yk_step_open(yk_step *step, yk_engine *e, yk_error *err)
{
    const yk_dims *d = &e->d;
    const uint32_t n_layers = e->model->hp.n_layers, n = n_stages_of(e);
    const uint32_t n_runs = e->max_seqs < d->n_tokens ? e->max_seqs : d->n_tokens;
    yk_arena *a = &e->act;
    *step = (yk_step){.engine = e};
    step->tokens = yk_arena_take(a, d->n_tokens, sizeof *step->tokens, 0);
    step->pos = yk_arena_take(a, d->n_tokens, sizeof *step->pos, 0);
    step->runs = yk_arena_take(a, n_runs, sizeof *step->runs, 0);
    step->kv_slices = yk_arena_take(a, d->n_kv_slices, sizeof *step->kv_slices, 0);
    step->kv_slice_of = yk_arena_take(a, d->n_tokens, sizeof *step->kv_slice_of, 0);
    step->tables = yk_arena_take(a, (size_t)n_runs * d->max_blocks, sizeof *step->tables, 0);
    step->logits_token = yk_arena_take(a, d->n_logits, sizeof *step->logits_token, 0);
    step->flow = yk_arena_take(a, n_layers, 1, 0);
    step->work = yk_arena_take(a, n_layers, sizeof *step->work, 0);
    step->logits_row = yk_arena_take(a, d->n_logits, sizeof *step->logits_row, 0);
    yk_group *g = &step->dense;
    g->part = yk_arena_take(a, 1, sizeof *g->part, 0);
    g->slot0 = yk_arena_take(a, 2, sizeof *g->slot0, 0);
    g->unit0 = yk_arena_take(a, 2, sizeof *g->unit0, 0);
    g->token = yk_arena_take(a, d->n_tokens, sizeof *g->token, 0);
    g->weight = yk_arena_take(a, d->n_tokens, sizeof *g->weight, 0);
    step->job.stages = yk_arena_take(a, n, sizeof *step->job.stages, 0);
    step->job.claims = yk_arena_take(a, n, sizeof *step->job.claims, 0);
    if (e->trace)
        step->job.done_ns = yk_arena_take(a, n, sizeof *step->job.done_ns, 0);
    if (!step->job.claims || (e->trace && !step->job.done_ns))
        return yk_fail_memory(err, a->size, "a step");

    /* Owner table: one range for each kind of stage, as long as its largest stage; rope_kv is read after the step, so each layer has
     * its own. More tokens mean fewer rows in a slice up to where YK_ROWS_MANY begins, so the maxima are those of a full step or of one just below. */
    const uint32_t below = YK_TOKEN_TILE / 2 - 1;
    const step_size z[2] = {
        {d->n_tokens, d->n_kv_slices, d->n_logits},
        {d->n_tokens < below ? d->n_tokens : below, d->n_kv_slices, d->n_logits < below ? d->n_logits : below}};
    uint32_t first[YK_S_N_KINDS], next = 0;
    for (uint32_t k = 0; k < YK_S_N_KINDS; k++) {
        uint32_t most = 0;
        for (uint32_t l = 0; l < 2 * n_layers; l++) {
            step->n_tokens = z[l % 2].n_tokens;
            const uint32_t s = slices_of(step, l / 2, (enum yk_stage_kind)k, z[l % 2]);
            most = s > most ? s : most;
        }
        if (k == YK_S_ATTN && most < yk_attn_parts_max(e) * e->model->hp.n_kv_heads)
            most = yk_attn_parts_max(e) * e->model->hp.n_kv_heads;
        if (k == YK_S_GATE_UP && e->places) /* every cut unit may be a piece of its own */
            most =
                (d->n_slots < d->n_parts ? d->n_slots : d->n_parts) * (d->n_ff / YK_UNITS_MULTIPLE + d->n_ff / YK_CUT_UNIT + 2);
        YK_FAIL_IF(most > YK_MAX_SLICES, err, YK_ERR_USAGE,
                   "a batch of %u tokens gives %u slices of stage %s, at most %d; use a smaller batch", d->n_tokens, most,
                   stage_table[k].name, YK_MAX_SLICES);
        first[k] = next;
        next += most * (k == YK_S_ROPE_KV ? n_layers : 1);
    }
    step->job.owners = yk_arena_take(a, next, sizeof *step->job.owners, 0);
    if (!step->job.owners)
        return yk_fail_memory(err, a->size, "a step");
    step->n_tokens = 0;
    step->job.n_stages = n;
    step->job.cancel = &e->cancel;
    for (uint32_t i = 0; i < n; i++) {
        const bool tail = i >= n_layers * YK_S_PER_LAYER;
        const enum yk_stage_kind kind = tail ? YK_S_HEAD_IN + (i - n_layers * YK_S_PER_LAYER) : i % YK_S_PER_LAYER;
        step->job.stages[i] = (yk_stage){
            .name = stage_table[kind].name,
            .run = stage_table[kind].run,
            .arg = step,
            .first_owner = first[kind] + (kind == YK_S_ROPE_KV ? i / YK_S_PER_LAYER * d->n_kv_slices : 0),
        };
    }
    return YK_OK;
}

/* K and V from staging into the pool. A block that was shared gets its committed positions too. */
static void commit_kv(const yk_step *step)
{
    const yk_engine *e = step->engine;
    const size_t pos_bytes = e->model->hp.head_dim * e->d.kv_elem, head_bytes = YK_KV_BLOCK * pos_bytes;
    for (uint32_t layer = 0; layer < e->model->hp.n_layers; layer++) {
        if (e->places && e->places[layer].attn_dev)
            continue;                                            /* the device appends to its own blocks */
        const bool from_device = yk_attn_on_device(step, layer); /* staged as the virtual worker's */
        const yk_stage *rope = yk_stage_get(step, layer, YK_S_ROPE_KV);
        for (uint32_t i = 0; i < step->n_kv_slices; i++) {
            const yk_kv_slice *ks = &step->kv_slices[i];
            const yk_run *run = &step->runs[ks->run];
            const uint32_t owner = from_device ? e->virtual_worker : yk_stage_owner(&step->job, rope, i);
            const uint32_t from = run->copied && i == run->kv_slice0 ? 0 : ks->old, to = ks->old + ks->n;
            const uint8_t *src = yk_staged_kv(e, owner, layer, i) + from * pos_bytes;
            uint8_t *dst = yk_kv_layer(&e->kv, run->seq->blocks[ks->block], layer) + from * pos_bytes;
            for (uint32_t h = 0; h < 2 * e->model->hp.n_kv_heads; h++)
                memcpy(dst + h * head_bytes, src + h * head_bytes, (to - from) * pos_bytes);
        }
    }
}

static void collect_logits(const yk_step *step)
{
    const yk_engine *e = step->engine;
    const uint32_t n_vocab = e->model->hp.n_vocab;
    const yk_stage *head = &step->job.stages[step->job.n_stages - 1];
    const yk_gather g = {step, head, e->buf.logits, e->d.n_logits, n_vocab};
    for (uint32_t i = 0; i < step->n_logits; i++)
        yk_gather_row(&g, yk_rows_of(&e->model->output, step->n_logits), 0, 0, i,
                      e->logits + (size_t)step->logits_row[i] * n_vocab);
}

yk_status yk_step_run(yk_step *step, yk_error *err)
{
    yk_engine *e = step->engine;
    step->bucket = yk_bucket_of(step->n_tokens);
    plan_attention(step);
    yk_stats_begin(e->stats, step);
    build_job(step);
    const yk_status st = e->lane ? yk_gpulane_step(e->lane, step, err) : yk_pool_run(e->pool, &step->job, err);
    if (st == YK_OK) {
        commit_kv(step);
        if (step->n_logits && !e->head_dev)
            collect_logits(step);
    }
    yk_stats_end(e->stats, step, st == YK_OK);
    YK_TRY(st);
    e->n_tokens_done += step->n_tokens;
    e->n_steps_done++;
    return YK_OK;
}
