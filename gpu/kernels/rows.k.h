/* rows.k.h - what a group of the products for few tokens does (matvec.k.h, list.k.h).
 *
 * A group computes 16 rows (one panel). Work-item i has row i % 16 and part i / 16 of the blocks: sixteen neighbours read 64 neighbouring
 * bytes. */

#define YK_MV_TOKENS 8u
#define YK_MV_SHARED 512u /* YK_MV_TOKENS * YK_GROUP */

/* Sums of one work-item over its blocks of rounded activations; nt is a constant at each call. */
YK_FN void yk_mv_rounded(const u32 type, const yk_product *m, const u32 nt, const u32 i, f32 *acc)
{
    const u32 r = i % 16u, n_blocks = m->n_cols / 32u;
    for (u32 b = i / 16u; b < n_blocks; b += YK_PARTS) {
        u32 c[8];
        f32 s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        YK_GLOBAL const u8 *tile = yk_pr_tile(m, b / 8u);
        const u32 blocks = yk_min(8u, n_blocks - b / 8u * 8u); /* of this tile */
        yk_tile_codes(type, tile, blocks, b % 8u, r, c);
        yk_tile_scales(type, tile, blocks, b % 8u, r, s);
        YK_UNROLL
        for (u32 k = 0; k < nt; k++) {
            const yk_acts x = yk_pr_acts(m, k, b);
            acc[k] += x.scale * yk_tile_dot(type, c, s, x.q, x.sum);
        }
    }
}

/* The same for float weights and activations; a block is summed first. */
YK_FN void yk_mv_float(const u32 type, const yk_product *m, const u32 nt, const u32 i, f32 *acc)
{
    const u32 r = i % 16u;
    for (u32 k0 = i / 16u * 32u; k0 < m->n_cols; k0 += 32u * YK_PARTS) {
        YK_GLOBAL const u8 *tile = yk_pr_tile(m, k0 / 256u);
        f32 block[YK_MV_TOKENS];
        YK_UNROLL
        for (u32 k = 0; k < nt; k++)
            block[k] = 0.0f;
        for (u32 j = 0; j < yk_min(32u, m->n_cols - k0); j++) {
            const f32 w = yk_tile_float(type, tile, k0 % 256u + j, r);
            YK_UNROLL
            for (u32 k = 0; k < nt; k++)
                block[k] += w * m->x[(u64)yk_pr_row(m, k) * m->x_stride + k0 + j];
        }
        YK_UNROLL
        for (u32 k = 0; k < nt; k++)
            acc[k] += block[k];
    }
}

YK_FN void yk_mv_part(const u32 type, const yk_product *m, const u32 nt, const u32 i, YK_LOCAL f32 *part)
{
    f32 acc[YK_MV_TOKENS];
    YK_UNROLL
    for (u32 k = 0; k < nt; k++)
        acc[k] = 0.0f;
    if (yk_is_float_type(type))
        yk_mv_float(type, m, nt, i, acc);
    else
        yk_mv_rounded(type, m, nt, i, acc);
    YK_UNROLL
    for (u32 k = 0; k < nt; k++)
        part[k * YK_GROUP + i] = acc[k];
}

YK_FN void yk_mv_store(const yk_product *m, const yk_product_out *o, const u32 i, YK_LOCAL const f32 *part)
{
    for (u32 e = i; e < 16u * m->n; e += YK_GROUP) {
        YK_LOCAL const f32 *p = part + e / 16u * YK_GROUP + e % 16u;
        yk_pr_put(o, m->t0 + e / 16u, 16u * yk_group(0) + e % 16u, (p[0] + p[16]) + (p[32] + p[48]));
    }
}

/* One token. */
YK_FN void yk_mv_one(const u32 type, const yk_product *m, const yk_product_out *o, YK_LOCAL f32 *part)
{
    yk_items(i)
    {
        yk_mv_part(type, m, 1u, i, part);
    }
    yk_barrier();
    yk_items(i)
    {
        yk_mv_store(m, o, i, part);
    }
}

YK_FN void yk_mv_group(const u32 type, const yk_product *m, const yk_product_out *o, YK_LOCAL f32 *part)
{
    if (m->n == 1u) {
        yk_items(i)
        {
            yk_mv_part(type, m, 1u, i, part);
        }
    } else {
        yk_items(i)
        {
            yk_mv_part(type, m, YK_MV_TOKENS, i, part);
        }
    }
    yk_barrier();
    yk_items(i)
    {
        yk_mv_store(m, o, i, part);
    }
}
