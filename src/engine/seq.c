/* Sequences: block tables over the KV pool. */
#include <string.h>

#include "src/engine/engine.h"

static yk_status seq_new(yk_seq **out, yk_engine *e, yk_error *err)
{
    *out = NULL;
    uint32_t slot = 0;
    while (slot < e->max_seqs && e->seqs[slot])
        slot++;
    YK_FAIL_IF(slot == e->max_seqs, err, YK_ERR_USAGE, "all %u sequences are in use; raise max_seqs or close one", e->max_seqs);
    yk_seq *seq = yk_alloc(YK_MEM_KV, 1, sizeof *seq);
    if (!seq || !(seq->blocks = yk_alloc(YK_MEM_KV, e->d.max_blocks, sizeof *seq->blocks))) {
        yk_free(seq);
        return yk_fail_memory(err, sizeof *seq + e->d.max_blocks * sizeof *seq->blocks, "a sequence");
    }
    seq->engine = e;
    seq->index = slot;
    e->seqs[slot] = seq;
    *out = seq;
    return YK_OK;
}

yk_status yk_seq_open(yk_seq **out, yk_engine *engine, yk_error *err)
{
    return seq_new(out, engine, err);
}

yk_status yk_seq_fork(yk_seq **out, const yk_seq *from, yk_error *err)
{
    YK_TRY(seq_new(out, from->engine, err));
    yk_seq *seq = *out;
    seq->length = from->length;
    seq->n_blocks = from->n_blocks;
    memcpy(seq->blocks, from->blocks, from->n_blocks * sizeof *seq->blocks);
    for (uint32_t i = 0; i < seq->n_blocks; i++)
        yk_kv_share(&seq->engine->kv, seq->blocks[i]);
    return YK_OK;
}

void yk_seq_close(yk_seq **seq)
{
    yk_seq *s = *seq;
    if (!s)
        return;
    for (uint32_t i = 0; i < s->n_blocks; i++)
        yk_kv_drop(&s->engine->kv, s->blocks[i]);
    s->engine->seqs[s->index] = NULL;
    yk_free(s->blocks);
    yk_free(s);
    *seq = NULL;
}

uint32_t yk_seq_length(const yk_seq *seq)
{
    return seq->length;
}

yk_status yk_seq_truncate(yk_seq *seq, uint32_t length, yk_error *err)
{
    YK_FAIL_IF(length > seq->length, err, YK_ERR_USAGE, "a sequence of %u tokens cannot be cut to %u", seq->length, length);
    const uint32_t keep = (length + YK_KV_BLOCK - 1) / YK_KV_BLOCK;
    while (seq->n_blocks > keep)
        yk_kv_drop(&seq->engine->kv, seq->blocks[--seq->n_blocks]);
    seq->length = length;
    return YK_OK;
}
