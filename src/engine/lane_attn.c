/* Attention of a layer that lives on the host, in a staging slot; and which of its KV a step needs on the device. */
#include "src/engine/lane.h"

yk_layer_place yk_lane_attn_in(const yk_gpulane *lane, uint32_t layer, uint32_t slot)
{
    yk_layer_place p = lane->e->places[layer];
    yk_gpu_mem *const all[] = {&p.q.mem, &p.k.mem,    &p.v.mem,      &p.o.mem,  &p.attn_norm, &p.attn_norm_b,
                               &p.q_b,   &p.k_b,      &p.v_b,        &p.o_b,    &p.q_norm,    &p.k_norm,
                               &p.sinks, &p.ffn_norm, &p.ffn_norm_b, &p.router, &p.router_b,  &p.sh_router};
    const yk_gpu_mem base = lane->slot[slot];
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]->bytes)
            *all[i] = (yk_gpu_mem){base.handle, base.offset + all[i]->offset, all[i]->bytes};
    p.kv = lane->kv_scratch;
    return p;
}

yk_status yk_lane_kv_open(yk_gpulane *l, uint32_t n_blocks, yk_error *err)
{
    l->kv_list = yk_alloc(YK_MEM_RUNTIME, n_blocks, sizeof *l->kv_list);
    l->kv_listed = yk_alloc(YK_MEM_RUNTIME, n_blocks, sizeof *l->kv_listed);
    if (!l->kv_list || !l->kv_listed)
        return yk_fail_memory(err, (uint64_t)n_blocks * (sizeof *l->kv_list + sizeof *l->kv_listed), "a list of KV blocks");
    return YK_OK;
}

void yk_lane_kv_collect(yk_gpulane *l, const yk_step *step)
{
    for (uint32_t i = 0; i < l->n_kv_list; i++)
        l->kv_listed[l->kv_list[i].to] = 0;
    l->n_kv_list = 0;
    for (uint32_t i = 0; i < step->n_runs; i++) {
        const yk_run *run = &step->runs[i];
        for (uint32_t b = 0; b < yk_ceil_div(run->pos, YK_KV_BLOCK); b++) {
            const bool partial =
                b == run->pos / YK_KV_BLOCK; /* where a fork has its own block, the committed positions are in the shared one */
            const uint32_t to = run->seq->blocks[b];
            uint32_t *listed = &l->kv_listed[to];
            if (!*listed) {
                l->kv_list[l->n_kv_list] = (yk_lane_kv){partial ? run->read_first : to, to, (b + 1) * YK_KV_BLOCK, run->pos};
                *listed = ++l->n_kv_list;
            }
            yk_lane_kv *kv = &l->kv_list[*listed - 1];
            kv->pos = run->pos < kv->pos ? run->pos : kv->pos;
        }
    }
}

bool yk_lane_kv_read(const yk_lane_kv *kv, uint32_t window)
{
    return !window || (uint64_t)kv->end + window > (uint64_t)kv->pos + 1;
}
