#include "src/engine/trace.h"

#include <inttypes.h>

#include "src/base/clock.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/engine/stages.h"

struct yk_trace {
    yk_out_file file;
    uint64_t origin_ns; /* time 0 of the file */
    uint64_t n, lost;   /* records added, tasks not recorded */
    yk_trace_rec *rec;  /* [YK_TRACE_RECORDS] */
};

yk_status yk_trace_open(yk_trace **out, const char *path, yk_error *err)
{
    *out = NULL;
    yk_trace *t = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *t);
    if (!t)
        return yk_fail_memory(err, sizeof *t, "a trace");
    t->rec = yk_alloc(YK_MEM_RUNTIME, YK_TRACE_RECORDS, sizeof *t->rec);
    yk_status st = t->rec ? YK_OK : yk_fail_memory(err, YK_TRACE_RECORDS * sizeof *t->rec, "a trace");
    if (st == YK_OK)
        st = yk_out_open(&t->file, path, err);
    if (st != YK_OK) {
        yk_free(t->rec);
        yk_free(t);
        return st;
    }
    t->origin_ns = yk_now_ns();
    *out = t;
    return YK_OK;
}

void yk_trace_add(yk_trace *t, const yk_trace_rec *rec)
{
    t->rec[t->n++ % YK_TRACE_RECORDS] = *rec;
}
void yk_trace_lost(yk_trace *t, uint64_t n)
{
    t->lost += n;
}
uint32_t yk_trace_count(const yk_trace *t)
{
    return t->n < YK_TRACE_RECORDS ? (uint32_t)t->n : YK_TRACE_RECORDS;
}

const yk_trace_rec *yk_trace_get(const yk_trace *t, uint32_t index)
{
    return &t->rec[(t->n - yk_trace_count(t) + index) % YK_TRACE_RECORDS];
}

/* Names are this program's own and need no escapes. Times in us with the ns behind the point. */
static void write_file(const yk_trace *t)
{
    static const char *const lanes[YK_TRACE_LANES] = {"cpu", "gpu", "link", "link 2"};
    FILE *f = t->file.f;
    fprintf(f, "{\"displayTimeUnit\": \"ms\",\n \"otherData\": {\"records_lost\": %" PRIu64 "},\n \"traceEvents\": [\n",
            t->lost + (t->n - yk_trace_count(t)));
    fprintf(f, "  {\"name\": \"process_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": 1, \"args\": {\"name\": \"yoke\"}}");
    bool used[YK_TRACE_LANES] = {[YK_TRACE_CPU] = true};
    for (uint32_t i = 0; i < yk_trace_count(t); i++)
        used[yk_trace_get(t, i)->lane] = true;
    for (int i = 0; i < YK_TRACE_LANES; i++)
        if (used[i])
            fprintf(f, ",\n  {\"name\": \"thread_name\", \"ph\": \"M\", \"pid\": 1, \"tid\": %d, \"args\": {\"name\": \"%s\"}}",
                    i + 1, lanes[i]);
    for (uint32_t i = 0; i < yk_trace_count(t); i++) {
        const yk_trace_rec *r = yk_trace_get(t, i);
        const uint64_t ts = r->start_ns > t->origin_ns ? r->start_ns - t->origin_ns : 0;
        fprintf(f,
                ",\n  {\"name\": \"%s\", \"ph\": \"X\", \"pid\": 1, \"tid\": %d, \"ts\": %" PRIu64 ".%03u, \"dur\": %" PRIu64
                ".%03u, \"args\": {\"bytes\": %" PRIu64 ", \"kernel\": \"%s%s%s\", \"step\": %u",
                r->op, (int)r->lane + 1, ts / 1000, (unsigned)(ts % 1000), r->dur_ns / 1000, (unsigned)(r->dur_ns % 1000),
                r->bytes, r->kernel ? r->kernel : "", r->type ? " " : "", r->type ? r->type : "", r->step);
        if (r->layer != UINT32_MAX)
            fprintf(f, ", \"layer\": %u", r->layer);
        fprintf(f, "}}");
    }
    fprintf(f, "\n ]}\n");
}

void yk_trace_close(yk_trace **trace, bool keep)
{
    yk_trace *t = *trace;
    yk_error err = {0};
    if (!t)
        return;
    if (!keep) {
        yk_out_abort(&t->file);
    } else {
        write_file(t);
        if (yk_out_commit(&t->file, &err) != YK_OK)
            yk_log(YK_LOG_ERROR, "the trace is lost: %s", err.text);
    }
    yk_free(t->rec);
    yk_free(t);
    *trace = NULL;
}

/* ---- the CPU lane ------------------------------------------------------------------------------------------------------------------------ */

static uint64_t mat_bytes(const yk_weight *w)
{
    return w->data || w->mats ? w->row_bytes * w->n_rows : 0;
}

/* Intermediate units of part p that the CPU computes. */
static uint64_t units_here(const yk_step *step, uint32_t layer, uint32_t p, const yk_weight *gate)
{
    if (!step->engine->places)
        return gate->n_rows;
    const yk_part_place *pp = &step->engine->places[layer].parts[p];
    uint64_t n = 0;
    for (uint32_t i = 0; i < pp->n_pieces[step->bucket]; i++)
        n += pp->pieces[step->bucket][i].n;
    return n;
}

static uint64_t ffn_bytes(const yk_step *step, uint32_t layer, bool down)
{
    const yk_layer *w = &step->engine->model->layers[layer];
    const yk_group *g = &step->dense;
    if (w->moe)
        g = &step->engine->buf.group[yk_stage_owner(&step->job, yk_stage_get(step, layer, YK_S_GROUP), 0)];
    uint64_t sum = 0;
    for (uint32_t a = 0; a < g->n_active; a++) {
        const uint32_t p = w->moe ? g->part[a] : 0;
        const bool shared = w->moe && p >= w->gate.n_mats;
        const yk_weight *gate = shared ? &w->sh_gate : &w->gate, *up = shared ? &w->sh_up : &w->up,
                        *d = shared ? &w->sh_down : &w->down;
        const uint64_t units = units_here(step, layer, p, gate);
        sum += down ? mat_bytes(d) / d->n_cols * units : units * (gate->row_bytes + up->row_bytes);
    }
    return sum;
}

uint64_t yk_stage_bytes(const yk_step *step, uint32_t layer, enum yk_stage_kind kind)
{
    const yk_layer *w = &step->engine->model->layers[layer];
    switch (kind) {
    case YK_S_QKV:
        return mat_bytes(&w->q) + mat_bytes(&w->k) + mat_bytes(&w->v);
    case YK_S_O:
        return mat_bytes(&w->o);
    case YK_S_ROUTER:
        return mat_bytes(&w->router) + mat_bytes(&w->sh_router);
    case YK_S_GATE_UP:
        return ffn_bytes(step, layer, false);
    case YK_S_DOWN:
        return ffn_bytes(step, layer, true);
    case YK_S_HEAD:
        return mat_bytes(&step->engine->model->output);
    default:
        return 0;
    }
}

/* The matrix whose type names the kernel of a stage, or NULL. */
static const yk_weight *weight_of(const yk_engine *e, uint32_t layer, enum yk_stage_kind kind)
{
    const yk_layer *w = &e->model->layers[layer];
    switch (kind) {
    case YK_S_QKV:
        return &w->q;
    case YK_S_O:
        return &w->o;
    case YK_S_ROUTER:
        return &w->router;
    case YK_S_GATE_UP:
        return &w->gate;
    case YK_S_DOWN:
        return &w->down;
    case YK_S_HEAD:
        return &e->model->output;
    default:
        return NULL;
    }
}

void yk_trace_stage(void *user, const yk_stage *stage, uint64_t start_ns, uint64_t end_ns)
{
    const yk_engine *e = user;
    const yk_step *step = yk_step_of(stage);
    const uint32_t i = (uint32_t)(stage - step->job.stages), tail = e->model->hp.n_layers * YK_S_PER_LAYER;
    const enum yk_stage_kind kind = i >= tail ? YK_S_HEAD_IN + (i - tail) : i % YK_S_PER_LAYER;
    if ((kind == YK_S_FFN_IN || kind == YK_S_ROUTE) && yk_attn_on_device(step, stage->layer))
        return; /* the device's results */
    const yk_weight *w = weight_of(e, stage->layer, kind);
    yk_trace_add(e->trace, &(yk_trace_rec){.start_ns = start_ns,
                                           .dur_ns = end_ns - start_ns,
                                           .bytes = yk_stage_bytes(step, stage->layer, kind),
                                           .op = stage->name,
                                           .kernel = w ? "matmul" : stage->name,
                                           .type = w ? yk_type_get(w->type)->name : NULL,
                                           .layer = i >= tail ? UINT32_MAX : stage->layer,
                                           .step = (uint32_t)e->n_steps_done,
                                           .lane = YK_TRACE_CPU});
}
