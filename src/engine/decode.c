/* yk_decode: a batch of any sequences is checked, gets its KV blocks, and is cut into steps. */
#include <inttypes.h>

#include "src/engine/engine.h"

static yk_status check_entry(yk_engine *e, const yk_batch_entry *b, uint32_t i, uint64_t *rows, yk_error *err)
{
    YK_FAIL_IF(!b->seq || b->seq->engine != e, err, YK_ERR_USAGE, "entry %u: the sequence does not belong to this engine", i);
    YK_FAIL_IF(!b->tokens || b->n_tokens == 0, err, YK_ERR_USAGE, "entry %u: no tokens", i);
    YK_FAIL_IF(b->seq->mark == e->batch_mark, err, YK_ERR_USAGE, "entry %u: its sequence is in the batch twice", i);
    b->seq->mark = e->batch_mark;
    for (uint32_t t = 0; t < b->n_tokens; t++)
        YK_FAIL_IF(b->tokens[t] < 0 || (uint32_t)b->tokens[t] >= e->model->hp.n_vocab, err, YK_ERR_USAGE,
                   "entry %u: token %" PRId32 " is outside the vocabulary of %u", i, b->tokens[t], e->model->hp.n_vocab);
    YK_FAIL_IF(b->n_tokens > e->context - b->seq->length, err, YK_ERR_CONTEXT,
               "entry %u: %u tokens and %u more do not fit in the context of %u", i, b->seq->length, b->n_tokens, e->context);
    switch (b->logits) {
    case YK_LOGITS_NONE:
        return YK_OK;
    case YK_LOGITS_LAST:
        *rows += 1;
        return YK_OK;
    case YK_LOGITS_ALL:
        *rows += b->n_tokens;
        return YK_OK;
    }
    return yk_fail(err, YK_ERR_USAGE, "entry %u: unknown logits mode %d", i, (int)b->logits);
}

static void undo(yk_engine *e, const yk_batch_entry *entries, const yk_reserve *r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        yk_seq *s = entries[i].seq;
        while (s->n_blocks > r[i].n_blocks)
            yk_kv_drop(&e->kv, s->blocks[--s->n_blocks]);
        if (r[i].replaced) {
            yk_kv_drop(&e->kv, s->blocks[s->n_blocks - 1]);
            s->blocks[s->n_blocks - 1] = r[i].old_block;
        }
        s->length = r[i].length;
    }
}

/* Blocks for all tokens of an entry; false when the pool is full (then undo takes back what there is). */
static bool take_blocks(yk_engine *e, const yk_batch_entry *b, yk_reserve *r)
{
    yk_seq *s = b->seq;
    *r = (yk_reserve){.length = s->length, .n_blocks = s->n_blocks};
    if (s->length % YK_KV_BLOCK && e->kv.refs[s->blocks[s->n_blocks - 1]] > 1) {
        uint32_t fresh;
        if (!yk_kv_take(&e->kv, &fresh))
            return false;
        r->old_block = s->blocks[s->n_blocks - 1];
        r->replaced = true;
        s->blocks[s->n_blocks - 1] = fresh;
    }
    const uint32_t want = (s->length + b->n_tokens + YK_KV_BLOCK - 1) / YK_KV_BLOCK;
    while (s->n_blocks < want) {
        if (!yk_kv_take(&e->kv, &s->blocks[s->n_blocks]))
            return false;
        s->n_blocks++;
    }
    return true;
}

/* Cut the batch into steps of at most d.n_tokens tokens and run them. */
static yk_status run_steps(yk_engine *e, const yk_batch_entry *entries, yk_reserve *r, uint32_t n, yk_error *err)
{
    uint32_t i = 0, done = 0; /* entry, and how many of its tokens are in earlier steps */
    while (i < n) {
        yk_step *step = yk_step_begin(e);
        const uint32_t first = i, first_done = done;
        while (i < n && step->n_tokens < e->d.n_tokens) {
            const yk_batch_entry *b = &entries[i];
            const uint32_t room = e->d.n_tokens - step->n_tokens;
            const uint32_t count = b->n_tokens - done < room ? b->n_tokens - done : room;
            yk_run_opts o = {.seq = b->seq, .pos = r[i].length + done, .n = count, .tokens = b->tokens + done};
            o.copied = r[i].replaced && !r[i].written;
            if (o.pos % YK_KV_BLOCK)
                o.read_first = o.copied ? r[i].old_block : b->seq->blocks[o.pos / YK_KV_BLOCK];
            o.logits_first = b->logits == YK_LOGITS_ALL                                   ? 0
                             : b->logits == YK_LOGITS_LAST && done + count == b->n_tokens ? count - 1
                                                                                          : count;
            o.row = e->entry_row[i] + (b->logits == YK_LOGITS_ALL ? done : 0);
            yk_step_add(step, &o);
            done += count;
            if (done < b->n_tokens)
                break;
            done = 0;
            i++;
        }
        YK_TRY(yk_step_run(step, err));
        for (uint32_t j = first; j < n && (j < i || (j == i && done)); j++) {
            r[j].written = true;
            entries[j].seq->length +=
                j == i ? done - (j == first ? first_done : 0) : entries[j].n_tokens - (j == first ? first_done : 0);
        }
    }
    return YK_OK;
}

yk_status yk_decode(yk_engine *engine, const yk_batch_entry *entries, uint32_t n_entries, yk_error *err)
{
    yk_engine *e = engine;
    YK_FAIL_IF(!entries || n_entries == 0, err, YK_ERR_USAGE, "an empty batch");
    YK_FAIL_IF(n_entries > e->max_seqs, err, YK_ERR_USAGE, "a batch of %u sequences; max_seqs is %u", n_entries, e->max_seqs);
    e->batch_mark++;
    e->n_entries = 0;
    uint64_t rows = 0;
    for (uint32_t i = 0; i < n_entries; i++) {
        const uint64_t before = rows;
        YK_TRY(check_entry(e, &entries[i], i, &rows, err));
        YK_FAIL_IF(rows > e->d.n_logits, err, YK_ERR_USAGE,
                   "the batch asks for more than the %u logits rows that were reserved (logits_rows)", e->d.n_logits);
        e->entry_row[i] = (uint32_t)before;
        e->entry_rows[i] = (uint32_t)(rows - before);
    }
    yk_reserve *r = e->reserves;
    uint32_t i = 0;
    while (i < n_entries && take_blocks(e, &entries[i], &r[i]))
        i++;
    if (i < n_entries) {
        const yk_status st =
            yk_fail(err, YK_ERR_CONTEXT, "the KV pool of %" PRIu64 " tokens is full; raise kv_tokens or close a sequence",
                    (uint64_t)e->kv.n_blocks * YK_KV_BLOCK);
        undo(e, entries, r, i + 1);
        return st;
    }
    const yk_status st = run_steps(e, entries, r, n_entries, err);
    if (st != YK_OK) {
        if (st == YK_ERR_CANCELLED)
            atomic_store(&e->cancel, false);
        undo(e, entries, r, n_entries);
        return st;
    }
    for (i = 0; i < n_entries; i++)
        if (r[i].replaced)
            yk_kv_drop(&e->kv, r[i].old_block);
    e->n_entries = n_entries;
    return YK_OK;
}

const float *yk_logits(const yk_engine *engine, uint32_t entry, uint32_t index)
{
    if (entry >= engine->n_entries || index >= engine->entry_rows[entry])
        return NULL;
    return engine->logits + (size_t)(engine->entry_row[entry] + index) * engine->model->hp.n_vocab;
}

void yk_engine_cancel(yk_engine *engine)
{
    atomic_store(&engine->cancel, true);
}
void yk_engine_cancel_clear(yk_engine *engine)
{
    atomic_store(&engine->cancel, false);
}
