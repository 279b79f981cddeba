#include "src/engine/swap.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include "src/base/file.h"
#include "src/base/log.h"
#include "src/engine/auto.h"
#include "src/engine/stages.h"

enum {
    RUNS = 2,          /* of a part: its equal units, and the last one where it is smaller */
    GRAIN = 4096,      /* pieces of a copy end at multiples of this */
    LEAST = 256 << 10, /* bytes that are worth a copy of their own */
    FAILURES = 3,      /* in a row, then nothing is swapped any more */
    MAX_PATH = 4096,
    MAX_FILE = 16 << 20
};
#define NOWHERE UINT32_MAX

typedef struct expert {
    uint32_t n_runs;
    yk_slab run[RUNS];          /* where it is packed on the host; dev: none */
    yk_gpu_mem slot[RUNS];      /* memory that the plan gave it on the device */
    uint8_t kind[YK_N_BUCKETS]; /* the plan's */
    uint32_t in_slot;           /* resident in the slot of this expert, or NOWHERE */
    uint32_t like;              /* on the host: computed as the plan says for this one */
} expert;

/* A swap under way: an expert to the slot that another one has left. */
typedef struct move {
    uint32_t layer, in, slot;
    uint64_t done, goal; /* bytes: enqueued; to be there when this step ends */
} move;

struct yk_swap {
    yk_engine *e;
    yk_gpulane *l;
    yk_gpu_stream *up;
    yk_residency *policy;
    char shape_id[17];
    uint32_t n_layers, n_experts; /* experts of a layer, the most */
    expert *experts;              /* [n_layers][n_experts] */
    bool *moves_layer;            /* [n_layers] */
    uint64_t *bytes;              /* [n_layers] of an expert */
    uint16_t *picks;              /* [n_layers][n_used] of the step's token that is looked at */
    uint32_t n_used, turn;
    bool bad_picks;
    uint32_t n_moves;
    move moves[YK_RESIDENCY_COPIES];
    uint64_t sent, to_send; /* bytes of this step */
    bool enqueued;          /* since the stream was waited for */
    yk_error failure;       /* of this step's copies */
    uint32_t n_failures;    /* in a row */
    yk_swap_sums sums;
};

static expert *expert_at(const yk_swap *s, uint32_t layer, uint32_t e)
{
    return &s->experts[(size_t)layer * s->n_experts + e];
}

/* ---- open and close --------------------------------------------------------------------------------------------------------------------- */

/* Prices of all layers; the number of layers in which something moves. */
static yk_status open_policy(yk_swap *s, const yk_plan *plan, const yk_cost *cost, uint32_t *n_moving, yk_error *err)
{
    const yk_engine *e = s->e;
    const yk_step_kind step = {.n = 1, .depth = e->context / 2, .kv_elem_bytes = (uint32_t)e->d.kv_elem};
    yk_resident_layer *layers = yk_alloc(YK_MEM_PLAN, s->n_layers, sizeof *layers);
    uint8_t *kinds = yk_alloc(YK_MEM_PLAN, s->n_layers, s->n_experts);
    double layers_s = 0;
    yk_status st = layers && kinds ? YK_OK : yk_fail_memory(err, s->n_layers * sizeof *layers, "prices of experts");
    for (uint32_t l = 0; st == YK_OK && l < s->n_layers; l++) {
        uint8_t *row = kinds + (size_t)l * s->n_experts;
        uint32_t n[3] = {0};
        yk_resident_price(&layers[l], row, cost, plan, l, step.depth, step.kv_elem_bytes);
        s->moves_layer[l] = layers[l].n_experts != 0;
        *n_moving += s->moves_layer[l];
        for (uint32_t i = 0; i < layers[l].n_experts; i++)
            n[row[i]]++;
        layers_s += layers[l].n_experts ? yk_spread_mean(layers[l].at, layers[l].n_used, n) : 0;
    }
    if (st == YK_OK && *n_moving) {
        const yk_residency_opts o = {.rest_s = fmax(0, yk_cost_plan(cost, plan, &step, NULL) - layers_s)};
        st = yk_residency_open(&s->policy, layers, s->n_layers, kinds, s->n_experts, &o, err);
    }
    yk_free(layers);
    yk_free(kinds);
    return st;
}

static yk_status open_tables(yk_swap *s, yk_error *err)
{
    const size_t cells = (size_t)s->n_layers * s->n_experts;
    s->experts = yk_alloc(YK_MEM_PLAN, cells, sizeof *s->experts);
    s->moves_layer = yk_alloc(YK_MEM_PLAN, s->n_layers, sizeof *s->moves_layer);
    s->bytes = yk_alloc(YK_MEM_PLAN, s->n_layers, sizeof *s->bytes);
    s->picks = yk_alloc(YK_MEM_PLAN, (size_t)s->n_layers * s->n_used, sizeof *s->picks);
    if (!s->experts || !s->moves_layer || !s->bytes || !s->picks)
        return yk_fail_memory(err, cells * sizeof *s->experts, "places of experts");
    return YK_OK;
}

/* ---- what is kept for the next start ------------------------------------------------------------------------------------------------------ */

/* A file for each model, beside the machine's. */
static yk_status stats_path(const yk_swap *s, char path[MAX_PATH], yk_error *err)
{
    yk_model_info info;
    char bytes[32];
    yk_model_get_info(s->e->model, &info);
    snprintf(bytes, sizeof bytes, "%" PRIu64, info.file_bytes);
    const uint64_t h = yk_cache_hash(yk_cache_hash(yk_cache_hash(YK_CACHE_HASH, s->shape_id), info.name), bytes);
    return yk_cache_file(path, MAX_PATH, "experts", h, err);
}

static void load_stats(yk_swap *s)
{
    char path[MAX_PATH], *text = NULL;
    size_t n = 0;
    struct stat file;
    yk_error err = {0};
    if (stats_path(s, path, &err) != YK_OK || stat(path, &file) != 0)
        return;
    yk_status st = S_ISREG(file.st_mode) ? yk_read_file(&text, &n, path, MAX_FILE, &err) /* opening a pipe would wait */
                                         : yk_fail(&err, YK_ERR_INPUT, "it is no file");
    if (st == YK_OK)
        st = yk_residency_read(s->policy, s->shape_id, text, n, &err);
    yk_free(text);
    if (st == YK_OK)
        yk_log(YK_LOG_INFO, "what was learned of experts: %s", path);
    else
        yk_log(YK_LOG_WARN, "what was learned of experts is not used, %s: %s", path, err.text);
}

static void save_stats(const yk_swap *s)
{
    char path[MAX_PATH], *text = NULL;
    size_t n = 0;
    yk_error err = {0};
    yk_status st = stats_path(s, path, &err);
    if (st == YK_OK)
        st = yk_residency_write(s->policy, s->shape_id, &text, &n, &err);
    if (st == YK_OK) {
        yk_cache_folders(path);
        st = yk_write_file(path, text, n, &err);
    }
    yk_free(text);
    if (st != YK_OK)
        yk_log(YK_LOG_INFO, "what was learned of experts is not kept: %s", err.text);
}

yk_status yk_swap_open(yk_swap **out, yk_gpulane *lane, const yk_plan *plan, const yk_shape *shape, const yk_machine *machine,
                       yk_error *err)
{
    yk_cost cost;
    const int device = yk_machine_find(machine, lane->name);
    *out = NULL;
    YK_FAIL_IF(device < 0, err, YK_ERR_USAGE,
               "policy adaptive: the machine was measured without %s; measure it again with this device, or use policy static",
               lane->name);
    if (!shape->n_experts || shape->n_experts > UINT16_MAX)
        return YK_OK;
    yk_swap *s = yk_alloc(YK_MEM_PLAN, 1, sizeof *s);
    if (!s)
        return yk_fail_memory(err, sizeof *s, "places of experts");
    uint32_t n_moving = 0;
    s->e = lane->e;
    s->l = lane;
    s->n_layers = shape->n_layers;
    s->n_experts = shape->n_experts;
    s->n_used = shape->n_used;
    memcpy(s->shape_id, shape->id, sizeof s->shape_id);
    yk_cost_init(&cost, machine, device, shape);
    yk_status st = open_tables(s, err);
    if (st == YK_OK)
        st = open_policy(s, plan, &cost, &n_moving, err);
    if (st == YK_OK && n_moving)
        st = yk_gpulane_check(lane, lane->t->stream_open(lane->gpu, YK_STREAM_TO_DEVICE, &s->up), "a stream", err);
    *out = s;
    if (st != YK_OK || !n_moving)
        yk_swap_close(out);
    else
        load_stats(s);
    return st;
}

void yk_swap_close(yk_swap **swap)
{
    yk_swap *s = *swap;
    if (!s)
        return;
    if (s->up) {
        s->l->t->stream_sync(s->up);
        s->l->t->stream_close(s->up);
    }
    if (s->policy && yk_residency_get(s->policy).tokens)
        save_stats(s);
    yk_residency_close(&s->policy);
    yk_free(s->experts);
    yk_free(s->moves_layer);
    yk_free(s->bytes);
    yk_free(s->picks);
    yk_free(s);
    *swap = NULL;
}

bool yk_swap_moves(const yk_swap *s, uint32_t layer)
{
    return s && s->moves_layer[layer];
}

uint64_t yk_swap_bytes(const yk_plan *plan, const yk_shape *shape)
{
    uint64_t bytes = 0;
    for (uint32_t l = 0; l < plan->n_layers; l++) {
        const yk_plan_layer *y = &plan->layers[l];
        uint64_t here = 0;
        bool host = false;
        for (uint32_t i = 0; i < y->n_slices; i++) {
            const yk_slice *s = &y->slices[i];
            host |= s->group == YK_PART_EXP && s->home == YK_HOST;
            if (s->group == YK_PART_EXP && s->home != YK_HOST)
                here += yk_shape_units_bytes(&shape->layers[l].part[YK_PART_EXP], s->unit0, s->units);
        }
        bytes += host ? here : 0;
    }
    return bytes;
}

/* ---- placing ---------------------------------------------------------------------------------------------------------------------------- */

void yk_swap_put(yk_swap *s, uint32_t layer, const yk_slice *slice, const yk_slab *slab)
{
    expert *x = expert_at(s, layer, slice->expert);
    const uint64_t bytes = slab->unit_bytes * slab->n_units;
    if (x->n_runs == RUNS) /* more than a whole expert has: its layer has no price */
        return;
    x->run[x->n_runs] = *slab;
    x->run[x->n_runs].dev = (yk_gpu_mem){0};
    x->slot[x->n_runs++] = slab->dev;
    memcpy(x->kind, slice->kind, sizeof x->kind);
    x->in_slot = slice->home == YK_HOST ? NOWHERE : slice->expert;
    x->like = slice->expert;
    if (slice->expert == 0)
        s->bytes[layer] += bytes;
    s->sums.kept_bytes += slice->home == YK_HOST ? 0 : bytes;
}

/* The tables of an expert's place as it is now. */
static void write_place(yk_swap *s, uint32_t layer, uint32_t e)
{
    yk_part_place *pp = &s->e->places[layer].parts[e];
    const expert *x = expert_at(s, layer, e);
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        const uint8_t kind = x->in_slot != NOWHERE ? YK_KIND_GG : expert_at(s, layer, x->like)->kind[b];
        pp->n_pieces[b] = kind == YK_KIND_CC ? x->n_runs : 0;
        pp->n_slabs[b] = kind == YK_KIND_CC ? 0 : x->n_runs;
        for (uint32_t i = 0; i < x->n_runs; i++) {
            yk_slab slab = x->run[i];
            if (kind == YK_KIND_CC) {
                pp->pieces[b][i] = (yk_piece){slab.u0, slab.unit * slab.n_units, slab};
                continue;
            }
            if (kind == YK_KIND_GG) {
                slab.host = NULL;
                slab.dev = expert_at(s, layer, x->in_slot)->slot[i];
            }
            pp->slabs[b][i] = slab;
        }
    }
}

/* Room for every place in every table, whatever the expert becomes. */
static yk_status open_places(yk_swap *s, uint32_t layer, uint32_t e, yk_error *err)
{
    yk_part_place *pp = &s->e->places[layer].parts[e];
    for (int b = 0; b < YK_N_BUCKETS; b++) {
        yk_piece *pieces = yk_realloc(YK_MEM_PLAN, pp->pieces[b], RUNS, sizeof *pieces);
        if (!pieces)
            return yk_fail_memory(err, RUNS * sizeof *pieces, "places of experts");
        pp->pieces[b] = pieces;
        yk_slab *slabs = yk_realloc(YK_MEM_PLAN, pp->slabs[b], RUNS, sizeof *slabs);
        if (!slabs)
            return yk_fail_memory(err, RUNS * sizeof *slabs, "places of experts");
        pp->slabs[b] = slabs;
    }
    return YK_OK;
}

yk_status yk_swap_ready(yk_swap *s, yk_error *err)
{
    uint32_t k;
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (uint32_t e = 0; s->moves_layer[l] && e < yk_residency_experts(s->policy, l, &k); e++) {
            YK_TRY(open_places(s, l, e, err));
            write_place(s, l, e);
        }
    return YK_OK;
}

/* ---- a step ----------------------------------------------------------------------------------------------------------------------------- */

void yk_swap_note(yk_swap *s, const yk_step *step, uint32_t layer)
{
    if (!yk_swap_moves(s, layer) || step->bucket == YK_B_PREFILL)
        return;
    const yk_engine *e = s->e;
    const uint32_t t = s->turn % step->n_tokens, n = e->model->layers[layer].gate.n_mats;
    const size_t row = (size_t)yk_token_owner(step, yk_stage_get(step, layer, YK_S_ROUTE), t) * e->d.n_tokens + t;
    for (uint32_t j = 0; j < s->n_used; j++) {
        const uint32_t id = e->buf.ids[row * s->n_used + j];
        s->bad_picks |= id >= n;
        s->picks[(size_t)layer * s->n_used + j] = (uint16_t)(id < n ? id : 0);
    }
}

/* At most `most` bytes of a move. */
static yk_status copy_some(yk_lane_run *r, yk_swap *s, move *m, uint64_t most, yk_error *err)
{
    const expert *in = expert_at(s, m->layer, m->in), *slot = expert_at(s, m->layer, m->slot);
    uint64_t first = 0, end = m->goal - m->done < most ? m->goal : m->done + most;
    for (uint32_t i = 0; i < in->n_runs; i++) {
        const uint64_t bytes = in->run[i].unit_bytes * in->run[i].n_units;
        if (m->done >= first && m->done < end && m->done < first + bytes) {
            const uint64_t at = m->done - first, n = (end < first + bytes ? end : first + bytes) - m->done;
            yk_lane_mark *mark = yk_lane_begin(r, s->up, (yk_lane_task){YK_TRACE_UP, "swap", "copy", m->layer});
            s->enqueued = true;
            YK_TRY(yk_gpulane_check(s->l, s->l->t->copy_to_device(s->up, yk_mem_at(slot->slot[i], at), in->run[i].host + at, n),
                                    "a copy of an expert", err));
            yk_lane_end(r, s->up, mark, n);
            m->done += n;
            s->sent += n;
        }
        first += bytes;
    }
    return YK_OK;
}

void yk_swap_copy(yk_lane_run *r, uint32_t layer)
{
    yk_swap *s = r->l->swap;
    if (!s || !s->n_moves || r->step->bucket == YK_B_PREFILL || s->failure.status != YK_OK)
        return;
    if (layer == 0) {
        s->sent = s->to_send = 0;
        for (uint32_t i = 0; i < s->n_moves; i++)
            s->to_send += s->moves[i].goal - s->moves[i].done;
    }
    const bool last = layer + 1 == s->n_layers;
    const uint64_t upto = last ? s->to_send : (uint64_t)((double)s->to_send * (layer + 1) / s->n_layers);
    if (upto <= s->sent || (!last && upto - s->sent < LEAST))
        return;
    yk_status st = YK_OK;
    for (uint32_t i = 0; st == YK_OK && i < s->n_moves && s->sent < upto; i++)
        st = copy_some(r, s, &s->moves[i], upto - s->sent, &s->failure);
    if (st == YK_OK)
        yk_gpulane_check(s->l, s->l->t->stream_flush(s->up), "a stream", &s->failure);
}

void yk_swap_wait(yk_swap *s)
{
    yk_error err = {0};
    if (!s || !s->enqueued)
        return;
    s->enqueued = false;
    if (yk_gpulane_check(s->l, s->l->t->stream_sync(s->up), "a copy of an expert", &err) != YK_OK)
        s->failure = err;
}

/* ---- between steps ---------------------------------------------------------------------------------------------------------------------- */

/* What a step describes may change when no late worker looks at it any more. */
static void wait_workers(yk_swap *s, bool *waited)
{
    for (uint32_t i = 0; !*waited && i < YK_N_STEPS; i++)
        yk_pool_wait_job(s->e->pool, &s->e->steps[i].job);
    *waited = true;
}

/* What lies in a slot now nobody knows: copies begin again, or end for good. */
static void take_failure(yk_swap *s)
{
    s->n_failures++;
    s->sums.stopped = s->n_failures == FAILURES;
    if (s->n_failures == 1 || s->sums.stopped)
        yk_log(YK_LOG_WARN, "%s: %s",
               s->sums.stopped ? "experts stay where they are from now on" : "a swap of experts is tried again",
               s->failure.text);
    for (uint32_t i = 0; i < s->n_moves; i++)
        s->moves[i].done = 0;
    if (s->sums.stopped)
        s->n_moves = 0;
    s->failure = (yk_error){0};
}

/* Experts whose bytes are all there become resident. true: none that should be has to wait. */
static bool land(yk_swap *s, bool *waited)
{
    uint32_t left = 0;
    bool all = true;
    for (uint32_t i = 0; i < s->n_moves; i++) {
        const move m = s->moves[i];
        if (m.done < s->bytes[m.layer]) {
            all = all && m.goal < s->bytes[m.layer];
            s->moves[left++] = m;
            continue;
        }
        wait_workers(s, waited);
        expert_at(s, m.layer, m.in)->in_slot = m.slot;
        write_place(s, m.layer, m.in);
        s->sums.swaps++;
    }
    s->n_moves = left;
    return all;
}

/* What the policy wants copied beside the next step; those that leave for it leave now. */
static void take_copies(yk_swap *s, const yk_resident_copy *copies, uint32_t n, bool *waited)
{
    for (uint32_t i = 0; i < n; i++) {
        const yk_resident_copy *c = &copies[i];
        const uint64_t bytes = s->bytes[c->layer], share = (uint64_t)(c->to * (double)bytes / GRAIN) * GRAIN;
        uint32_t k = 0;
        while (k < s->n_moves && (s->moves[k].layer != c->layer || s->moves[k].in != c->in))
            k++;
        if (k == s->n_moves) {
            expert *out = expert_at(s, c->layer, c->out);
            wait_workers(s, waited);
            s->moves[s->n_moves++] = (move){.layer = c->layer, .in = c->in, .slot = out->in_slot};
            out->in_slot = NOWHERE;
            out->like = expert_at(s, c->layer, c->in)->like;
            write_place(s, c->layer, c->out);
        }
        s->moves[k].goal = c->to < 1 ? share : bytes; /* below all until the policy has it land */
    }
}

/* When all residents are the plan's again, the others are what the plan says, too (partition/residency.c, back_at_plan). */
static void follow_return(yk_swap *s, bool *waited)
{
    uint32_t k;
    for (uint32_t l = 0; l < s->n_layers; l++)
        for (uint32_t e = 0; s->moves_layer[l] && e < yk_residency_experts(s->policy, l, &k); e++) {
            expert *x = expert_at(s, l, e);
            if (x->in_slot != NOWHERE || x->slot[0].handle ||
                expert_at(s, l, x->like)->kind[YK_B_1] == (uint8_t)yk_residency_kind(s->policy, l, e))
                continue;
            wait_workers(s, waited);
            x->like = e;
            write_place(s, l, e);
        }
}

void yk_swap_step(yk_swap *s, const yk_step *step, bool ok)
{
    bool waited = false;
    if (!s || s->sums.stopped)
        return;
    const bool bad = s->bad_picks;
    s->bad_picks = false;
    if (s->failure.status != YK_OK)
        take_failure(s);
    else if (ok && step->bucket != YK_B_PREFILL)
        s->n_failures = 0;
    if (s->sums.stopped || !ok || step->bucket == YK_B_PREFILL)
        return;
    s->turn++;
    if (!land(s, &waited) || bad)
        return;
    const yk_resident_copy *copies;
    const uint32_t n = yk_residency_token(s->policy, s->picks, s->n_used, &copies);
    take_copies(s, copies, n, &waited);
    if (!n)
        follow_return(s, &waited);
}

yk_swap_sums yk_swap_get(const yk_swap *s)
{
    yk_swap_sums sums = s->sums;
    sums.returns = yk_residency_get(s->policy).returns;
    sums.n_moving = s->n_moves;
    return sums;
}
