#include "gpu/kernels.h"

/* Columns a group of each kernel takes: gpu/kernels. */
enum { STAGE_COLS = 2048, MOVE_COLS = 1024, EMBED_COLS = 256, PANEL_ROWS = 16, PASS_TOKENS = 8, WIDE_TOKENS = 64 };

static uint32_t ceil_div(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static void begin(yk_k_call *c, yk_gpu_kernel *kernel, uint32_t x, uint32_t y, uint32_t z)
{
    c->launch = (yk_gpu_launch){.kernel = kernel, .groups = {x, y, z}, .group_size = YK_K_GROUP, .args = c->args};
}

static void mem(yk_k_call *c, yk_gpu_mem m)
{
    c->args[c->launch.n_args++] = (yk_gpu_arg){.kind = YK_ARG_MEM, .mem = m};
}

static void q8(yk_k_call *c, const yk_k_q8 *q)
{
    mem(c, q->q);
    mem(c, q->scale);
    mem(c, q->sum);
}

static void num(yk_k_call *c, uint32_t v)
{
    c->args[c->launch.n_args++] = (yk_gpu_arg){.kind = YK_ARG_U32, .u32 = v};
}

static void real(yk_k_call *c, float v)
{
    c->args[c->launch.n_args++] = (yk_gpu_arg){.kind = YK_ARG_F32, .f32 = v};
}

static void cost(yk_k_call *c, uint64_t bytes, uint64_t flops)
{
    c->launch.cost_bytes = bytes;
    c->launch.cost_flops = flops;
}

void yk_k_call_add_norm(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_add_norm *a)
{
    begin(c, kernel, a->n, 1, 1);
    mem(c, a->x);
    mem(c, a->y);
    mem(c, a->y2);
    mem(c, a->rows);
    mem(c, a->w);
    mem(c, a->b);
    mem(c, a->out);
    q8(c, &a->q8);
    num(c, a->n_cols);
    num(c, a->x_stride);
    num(c, a->y_stride);
    num(c, a->y2_stride);
    num(c, a->out_stride);
    num(c, a->n_y ? a->n_y : 1);
    real(c, a->eps);
    cost(c, (uint64_t)a->n * a->n_cols * (16 + 4 * (a->n_y ? a->n_y : 1)), (uint64_t)a->n * a->n_cols * 6);
}

void yk_k_call_quantise(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_quantise *a)
{
    begin(c, kernel, ceil_div(a->n_cols, STAGE_COLS), a->n, 1);
    mem(c, a->x);
    mem(c, a->rows);
    q8(c, &a->q8);
    num(c, a->n_cols);
    num(c, a->x_stride);
    cost(c, (uint64_t)a->n * a->n_cols * 5, (uint64_t)a->n * a->n_cols * 4);
}

void yk_k_call_glu(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_glu *a)
{
    begin(c, kernel, ceil_div(a->n_cols, STAGE_COLS), a->n, 1);
    mem(c, a->gate);
    mem(c, a->up);
    mem(c, a->gate_b);
    mem(c, a->up_b);
    mem(c, a->ids);
    mem(c, a->parts);
    mem(c, a->out);
    q8(c, &a->q8);
    num(c, a->n_cols);
    num(c, a->gate_stride);
    num(c, a->up_stride);
    num(c, a->out_stride);
    num(c, a->kind == YK_GLU_CLAMPED);
    cost(c, (uint64_t)a->n * a->n_cols * 13, (uint64_t)a->n * a->n_cols * 24);
}

void yk_k_call_move_rows(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_move_rows *a)
{
    begin(c, kernel, ceil_div(a->n_cols, MOVE_COLS), a->n, 1);
    mem(c, a->x);
    mem(c, a->rows);
    mem(c, a->weights);
    mem(c, a->y);
    mem(c, a->y_rows);
    num(c, a->n_cols);
    num(c, a->x_stride);
    num(c, a->y_stride);
    num(c, (a->add ? 1u : 0u) | (a->to_f16 ? 2u : 0u));
    cost(c, (uint64_t)a->n * a->n_cols * (a->add ? 12 : 8), (uint64_t)a->n * a->n_cols * 2);
}

void yk_k_call_sigmoid(yk_k_call *c, yk_gpu_kernel *kernel, yk_gpu_mem x, yk_gpu_mem y, uint32_t n)
{
    begin(c, kernel, ceil_div(n, MOVE_COLS), 1, 1);
    mem(c, x);
    mem(c, y);
    num(c, n);
    cost(c, (uint64_t)n * 8, (uint64_t)n * 20);
}

/* What the heads of a token are made from, and where its sequence lies: first arguments of rope_kv and attend. */
static void heads_in(yk_k_call *c, const yk_k_rope_kv *a)
{
    const yk_gpu_mem in[] = {a->qkv, a->q_b, a->k_b, a->v_b, a->q_norm, a->k_norm, a->cs, a->pos, a->seq, a->kv.table};
    for (size_t i = 0; i < sizeof in / sizeof *in; i++)
        mem(c, in[i]);
}

void yk_k_call_rope_kv(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_rope_kv *a)
{
    const uint64_t values = (uint64_t)a->n * (a->n_heads + 2 * a->n_kv_heads) * a->head_dim;
    begin(c, kernel, a->n_heads + 2 * a->n_kv_heads, a->n, 1);
    heads_in(c, a);
    mem(c, a->q_out);
    mem(c, a->kv.kv);
    num(c, a->qkv_stride);
    num(c, a->q_stride);
    num(c, a->n_heads);
    num(c, a->n_kv_heads);
    num(c, a->head_dim);
    num(c, a->n_rot);
    real(c, a->eps);
    num(c, a->kv.block_bytes);
    num(c, a->kv.v_bytes);
    num(c, a->kv.table_stride);
    num(c, (a->pairing == YK_ROPE_HALVES ? 1u : 0u) | (a->kv.f16 ? 2u : 0u) | (a->full_norm ? 4u : 0u));
    cost(c, values * 8, values * 8);
}

/* Shapes of attention.k.h: rows of a tile, positions of a split. */
enum { ATT_ROWS = 16, ATT_VALUES = 2048, ATTEND_ROWS = 8, ATTEND_VALUES = 1024, ATT_SPLIT = 128, ATT_SPLITS = 32 };

static uint32_t padded(uint32_t head_dim)
{
    return (head_dim + 3) / 4 * 4;
}

/* Query heads of a KV head in a group, evenly where they are more than it takes. */
static uint32_t heads_of_group(uint32_t n_heads, uint32_t n_kv_heads, uint32_t rows)
{
    const uint32_t share = n_heads / n_kv_heads;
    return ceil_div(share, ceil_div(share, rows));
}

static uint32_t attend_rows(uint32_t head_dim)
{
    const uint32_t rows = ATTEND_VALUES / padded(head_dim);
    return rows < ATTEND_ROWS ? rows : ATTEND_ROWS;
}

static uint32_t tile_rows(uint32_t head_dim)
{
    const uint32_t rows = ATT_VALUES / padded(head_dim);
    return rows < ATT_ROWS ? rows : ATT_ROWS;
}

uint32_t yk_k_attention_tile(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim)
{
    return tile_rows(head_dim) / heads_of_group(n_heads, n_kv_heads, tile_rows(head_dim));
}

uint32_t yk_k_attention_tiles(uint32_t *tiles, uint32_t first, uint32_t n, uint32_t tokens)
{
    uint32_t count = 0;
    for (uint32_t t = 0; t < n; t += tokens, count++) {
        tiles[2 * count] = first + t;
        tiles[2 * count + 1] = n - t < tokens ? n - t : tokens;
    }
    return count;
}

uint32_t yk_k_attention_splits(uint32_t pos, uint32_t window, uint32_t head_dim)
{
    const uint32_t dims = padded(head_dim), chunk = dims <= 128 ? 32 : dims <= 256 ? 16 : 8;
    const uint32_t first = window && pos + 1 > window ? pos + 1 - window : 0, n = pos + 1 - first / chunk * chunk;
    uint64_t len = ATT_SPLIT;
    while (len * ATT_SPLITS < n)
        len *= 2;
    return (uint32_t)((n + len - 1) / len);
}

uint64_t yk_k_attention_part_bytes(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t context)
{
    const uint32_t share = n_heads / n_kv_heads, most = ceil_div(context, ATT_SPLIT),
                   splits = most < ATT_SPLITS ? most : ATT_SPLITS;
    uint64_t rows = 0; /* of all groups: heads do not always fill them */
    for (int attend = 0; attend < 2; attend++) {
        const uint32_t heads = heads_of_group(n_heads, n_kv_heads, attend ? attend_rows(head_dim) : tile_rows(head_dim));
        const uint64_t all = (uint64_t)n_kv_heads * ceil_div(share, heads) * heads;
        rows = all > rows ? all : rows;
    }
    return rows * splits * (padded(head_dim) + 4) * sizeof(float);
}

void yk_k_call_attend(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_attend *a)
{
    const yk_k_rope_kv *o = &a->rope;
    const uint32_t heads = heads_of_group(o->n_heads, o->n_kv_heads, attend_rows(o->head_dim)),
                   pieces = ceil_div(o->n_heads / o->n_kv_heads, heads);
    const uint64_t seen = (uint64_t)o->n * a->mean_positions * o->head_dim, values = (uint64_t)o->n * o->n_heads * o->head_dim;
    begin(c, kernel, o->n_kv_heads * pieces, o->n, a->n_splits ? a->n_splits : 1);
    heads_in(c, o);
    mem(c, a->sinks);
    mem(c, o->kv.kv);
    mem(c, a->out);
    q8(c, &a->q8);
    mem(c, a->part);
    mem(c, a->arrived);
    num(c, o->qkv_stride);
    num(c, a->out_stride);
    num(c, o->n_heads);
    num(c, o->n_kv_heads);
    num(c, o->head_dim);
    num(c, o->n_rot);
    real(c, o->eps);
    num(c, a->window);
    num(c, o->kv.block_bytes);
    num(c, o->kv.v_bytes);
    num(c, o->kv.table_stride);
    num(c, (o->pairing == YK_ROPE_HALVES ? 1u : 0u) | (o->kv.f16 ? 2u : 0u) | (o->full_norm ? 4u : 0u));
    num(c, heads);
    real(c, a->scale);
    cost(c, seen * o->n_kv_heads * pieces * (o->kv.f16 ? 4 : 8) + values * (16 + (a->n_splits > 1 ? 8 * a->n_splits : 0)),
         seen * o->n_heads * 4 + values * 24);
}

void yk_k_call_attention(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_attention *a)
{
    const uint32_t heads = heads_of_group(a->n_heads, a->n_kv_heads, tile_rows(a->head_dim)),
                   pieces = ceil_div(a->n_heads / a->n_kv_heads, heads);
    const uint64_t seen = (uint64_t)a->mean_positions * a->head_dim, values = (uint64_t)a->n * a->n_heads * a->head_dim;
    begin(c, kernel, a->n_kv_heads * pieces, a->n_tiles, a->n_splits ? a->n_splits : 1);
    mem(c, a->q);
    mem(c, a->kv.kv);
    mem(c, a->pos);
    mem(c, a->seq);
    mem(c, a->kv.table);
    mem(c, a->sinks);
    mem(c, a->tiles);
    mem(c, a->out);
    mem(c, a->part);
    mem(c, a->arrived);
    num(c, a->q_stride);
    num(c, a->out_stride);
    num(c, a->n_heads);
    num(c, a->n_kv_heads);
    num(c, a->head_dim);
    num(c, a->window);
    num(c, a->kv.block_bytes);
    num(c, a->kv.v_bytes);
    num(c, a->kv.table_stride);
    num(c, (a->kv.f16 ? 2u : 0u) | (a->n_splits > 1 ? 8u : 0u));
    num(c, heads);
    real(c, a->scale);
    cost(c, a->n_tiles * seen * a->n_kv_heads * pieces * (a->kv.f16 ? 4 : 8) + values * 8, a->n * seen * a->n_heads * 4);
}

/* By type: names of "matvec_TYPE", "matmul_TYPE", "embed_TYPE" and "list_TYPE". */
#define NAMES(type, name) [YK_TYPE_##type] = {"matvec_" name, "matmul_" name, "embed_" name, "list_" name}
static const struct {
    const char *matvec, *matmul, *embed, *list;
} by_type[] = {
    NAMES(F32, "f32"),   NAMES(F16, "f16"),       NAMES(BF16, "bf16"),     NAMES(Q4_0, "q4_0"),
    NAMES(Q4_1, "q4_1"), NAMES(Q5_0, "q5_0"),     NAMES(Q5_1, "q5_1"),     NAMES(Q8_0, "q8_0"),
    NAMES(Q2_K, "q2_k"), NAMES(Q3_K, "q3_k"),     NAMES(Q4_K, "q4_k"),     NAMES(Q5_K, "q5_k"),
    NAMES(Q6_K, "q6_k"), NAMES(IQ4_NL, "iq4_nl"), NAMES(IQ4_XS, "iq4_xs"), NAMES(MXFP4, "mxfp4"),
};
#undef NAMES

enum { N_BY_TYPE = sizeof by_type / sizeof *by_type };

/* From how many tokens on 64 of them in a group are faster than two passes of eight: weights count more than idle lanes. */
bool yk_k_matvec_wide(uint32_t n)
{
    return n > 2 * PASS_TOKENS;
}

static uint32_t tokens_of_group(uint32_t n)
{
    return yk_k_matvec_wide(n) ? WIDE_TOKENS : PASS_TOKENS;
}

const char *yk_k_matvec_name(yk_type type, uint32_t n)
{
    if ((uint32_t)type >= N_BY_TYPE)
        return NULL;
    return yk_k_matvec_wide(n) ? by_type[type].matmul : by_type[type].matvec;
}

void yk_k_call_matvec(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_matvec *a)
{
    uint64_t row_bytes = 0;
    const bool rounded = yk_type_get(a->type)->quantised;
    yk_type_row_bytes(a->type, a->n_cols, &row_bytes);
    begin(c, kernel, ceil_div(a->n_rows, PANEL_ROWS), ceil_div(a->n, tokens_of_group(a->n)), 1);
    mem(c, a->w);
    mem(c, rounded ? a->q8.q : a->x);
    mem(c, a->q8.scale);
    mem(c, a->q8.sum);
    mem(c, a->rows);
    mem(c, a->bias);
    mem(c, a->weights);
    mem(c, a->y);
    mem(c, a->y_rows);
    num(c, a->n_rows);
    num(c, a->n_cols);
    num(c, a->n);
    num(c, a->x_stride);
    num(c, a->y_stride);
    num(c, a->panel_bytes);
    num(c, a->tile_bytes);
    num(c, a->group_panels ? a->group_panels : UINT32_MAX);
    num(c, a->group_panels ? a->group_bytes : 0);
    num(c, a->add ? 1u : 0u);
    cost(c, row_bytes * a->n_rows * ceil_div(a->n, tokens_of_group(a->n)), (uint64_t)a->n * a->n_rows * a->n_cols * 2);
}

const char *yk_k_list_name(yk_type type)
{
    return (uint32_t)type < N_BY_TYPE ? by_type[type].list : NULL;
}

void yk_k_call_list(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_list *a)
{
    uint64_t row_bytes = 0;
    const bool rounded = yk_type_get(a->type)->quantised;
    const uint64_t rows = (uint64_t)a->n * a->used * a->n_rows;
    yk_type_row_bytes(a->type, a->n_cols, &row_bytes);
    begin(c, kernel, ceil_div(a->n_rows, PANEL_ROWS), a->n * a->used, 1);
    mem(c, a->w);
    mem(c, a->parts);
    mem(c, a->ids);
    mem(c, rounded ? a->q8.q : a->x);
    mem(c, a->q8.scale);
    mem(c, a->q8.sum);
    mem(c, a->bias);
    mem(c, a->weights);
    mem(c, a->y);
    num(c, a->used);
    num(c, a->n_rows);
    num(c, a->n_cols);
    num(c, a->x_stride);
    num(c, a->y_stride);
    num(c, a->panel_bytes);
    num(c, a->tile_bytes);
    num(c, a->down ? 1u : 0u);
    cost(c, row_bytes * rows, rows * a->n_cols * 2);
}

static uint32_t row_type(yk_type type)
{
    return type == YK_TYPE_F16 ? 1u : type == YK_TYPE_BF16 ? 2u : 0u;
}

void yk_k_call_rowmat(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_rowmat *a)
{
    begin(c, kernel, a->n_rows + (a->w2.handle ? 1 : 0), a->n, 1);
    mem(c, a->w);
    mem(c, a->w2);
    mem(c, a->x);
    mem(c, a->bias);
    mem(c, a->y);
    num(c, a->n_rows);
    num(c, a->n_cols);
    num(c, a->x_stride);
    num(c, a->y_stride);
    num(c, row_type(a->type) | row_type(a->type2) << 2);
    cost(c, (uint64_t)a->n_rows * a->n_cols * (a->type == YK_TYPE_F32 ? 4 : 2), (uint64_t)a->n * a->n_rows * a->n_cols * 2);
}

void yk_k_call_route(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_route *a)
{
    begin(c, kernel, a->n, 1, 1);
    mem(c, a->logits);
    mem(c, a->ids);
    mem(c, a->weights);
    num(c, a->n_experts);
    num(c, a->k);
    num(c, a->stride);
    num(c, (a->kind == YK_ROUTER_TOPK_SOFTMAX ? 1u : 0u) | (a->renorm ? 2u : 0u) |
               (!a->shared       ? 0u
                : a->shared_gate ? 4u
                                 : 8u));
    cost(c, (uint64_t)a->n * a->n_experts * 4, (uint64_t)a->n * a->n_experts * (a->k + 20));
}

const char *yk_k_embed_name(yk_type type)
{
    return (uint32_t)type < N_BY_TYPE ? by_type[type].embed : NULL;
}

void yk_k_call_embed(yk_k_call *c, yk_gpu_kernel *kernel, const yk_k_embed *a)
{
    begin(c, kernel, ceil_div(a->n_cols, EMBED_COLS), a->n, 1);
    mem(c, a->w);
    mem(c, a->ids);
    mem(c, a->out);
    num(c, a->n_rows);
    num(c, a->n_cols);
    num(c, a->panel_bytes ? a->tile_bytes : a->row_bytes);
    num(c, a->panel_bytes);
    num(c, a->out_stride);
    cost(c, (uint64_t)a->n * a->n_cols * 5, (uint64_t)a->n * a->n_cols * 2);
}
