/* The merging loop both kinds share: a binary heap of candidate pairs, lowest order first, leftmost among equals. */
#include "src/model/tokenizer_internal.h"

yk_status yk_tok_work_reserve(yk_tok_work *work, size_t n, yk_error *err)
{
    work->n = work->n_heap = 0;
    if (n <= work->cap)
        return YK_OK;
    const size_t cap = n > work->cap * 2 ? n + 64 : work->cap * 2;
    yk_tok_work_free(work);
    /* Each merge takes one pair out of the heap and adds at most two, so 2 n are enough. */
    work->syms = yk_alloc(YK_MEM_RUNTIME, cap, sizeof *work->syms);
    work->heap = yk_alloc(YK_MEM_RUNTIME, cap, 2 * sizeof *work->heap);
    if (!work->syms || !work->heap) {
        yk_tok_work_free(work);
        return yk_fail_memory(err, cap * (sizeof *work->syms + 2 * sizeof *work->heap), "merging a word into tokens");
    }
    work->cap = cap;
    return YK_OK;
}

void yk_tok_work_free(yk_tok_work *work)
{
    yk_free(work->syms);
    yk_free(work->heap);
    *work = (yk_tok_work){0};
}

static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    const uint64_t v = heap[i];
    for (size_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && heap[c + 1] < heap[c])
            c++;
        if (heap[c] >= v)
            break;
        heap[i] = heap[c];
    }
    heap[i] = v;
}

static void heap_push(yk_tok_work *w, uint64_t v)
{
    size_t i = w->n_heap++;
    while (i && w->heap[(i - 1) / 2] > v) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = v;
}

static uint64_t heap_pop(yk_tok_work *w)
{
    const uint64_t top = w->heap[0];
    w->heap[0] = w->heap[--w->n_heap];
    if (w->n_heap)
        sift_down(w->heap, w->n_heap, 0);
    return top;
}

void yk_tok_merge_all(yk_tok_work *work, const yk_tokenizer *tok, const char *text, yk_tok_pair_fn pair)
{
    yk_tok_sym *syms = work->syms;
    const size_t n = work->n;
    work->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        yk_tok_sym *s = &syms[i];
        s->prev = (int32_t)i - 1;
        s->next = i + 1 < n ? (int32_t)i + 1 : -1;
        s->prio = i + 1 < n ? pair(tok, text, s, s + 1, &s->pair_id) : YK_TOK_NO_PAIR;
        if (s->prio != YK_TOK_NO_PAIR)
            work->heap[work->n_heap++] = (uint64_t)s->prio << 32 | i;
    }
    for (size_t i = work->n_heap / 2; i-- > 0;)
        sift_down(work->heap, work->n_heap, i);
    while (work->n_heap) {
        const uint64_t top = heap_pop(work);
        const int32_t at = (int32_t)(uint32_t)top;
        yk_tok_sym *s = &syms[at];
        /* Entries of pairs that are gone stay in the heap. One counts when the pair that is there now has its order; swallowed
         * symbols have none. */
        if (s->prio != (uint32_t)(top >> 32))
            continue;
        yk_tok_sym *right = &syms[s->next];
        s->len += right->len;
        s->id = s->pair_id;
        s->next = right->next;
        right->len = 0;
        right->prio = YK_TOK_NO_PAIR;
        if (s->next >= 0)
            syms[s->next].prev = at;
        const int32_t changed[2] = {s->prev, at};
        for (int k = 0; k < 2; k++) {
            if (changed[k] < 0)
                continue;
            yk_tok_sym *c = &syms[changed[k]];
            c->prio = c->next >= 0 ? pair(tok, text, c, &syms[c->next], &c->pair_id) : YK_TOK_NO_PAIR;
            if (c->prio != YK_TOK_NO_PAIR)
                heap_push(work, (uint64_t)c->prio << 32 | (uint32_t)changed[k]);
        }
    }
}
