/* layout.cl - matvec on the host layout: the same bytes the CPU kernels read (docs/kernels/layout.md).
 *
 * Two ways for a group of lanes to walk a panel of 16 rows:
 *   row:  lane r of 16 owns row r and reads 4 bytes of each group of 4 columns: 64 contiguous bytes for the 16 lanes.
 *   wide: 32 lanes read 16 bytes each, 512 contiguous bytes. A lane owns 4 rows and every eighth group of columns, so it keeps
 * 4 sums for each token and the 8 lanes of a row set add up once at the end, through local memory. Integer sums are exact; the
 * two ways differ from the CPU only in the order of f32 sums. N: tokens. No halves and no sub-groups needed. */

#define ROWS 16

inline int dp4(uint u, uint s) /* four unsigned times four signed bytes */
{
    const char4 c = as_char4(s);
    const uchar4 v = as_uchar4(u);
    return (int)v.x * c.x + (int)v.y * c.y + (int)v.z * c.z + (int)v.w * c.w;
}

inline int dp4s(uint u, uint s) /* four signed times four signed bytes */
{
    const char4 c = as_char4(s), v = as_char4(u);
    return (int)v.x * c.x + (int)v.y * c.y + (int)v.z * c.z + (int)v.w * c.w;
}

inline float half_at(const global uchar *p)
{
    return vload_half(0, (const global half *)p);
}

/* q: [N][cols] int8 as uint; scale: [N][cols/32]; sum: [N][cols/32] sums of q; y: [N][rows]. One group of 16 lanes a panel. */
kernel void q4_0_row(const global uchar *w, const global uint *q, const global float *scale, const global int *sum,
                     global float *y, uint cols, uint rows, uint panel_bytes)
{
    const uint r = get_local_id(0), nb = cols / 32;
    const global uchar *p = w + (size_t)get_group_id(0) * panel_bytes;
    float acc[N];
    for (int t = 0; t < N; t++)
        acc[t] = 0;
    for (uint k = 0; k < nb; k += 8) {
        const uint blocks = min(8u, nb - k);
        for (uint b = 0; b < blocks; b++) {
            const global uint *c = (const global uint *)(p + 256 * b);
            int s[N];
            for (int t = 0; t < N; t++)
                s[t] = -8 * sum[t * nb + k + b];
            for (uint j = 0; j < 4; j++) {
                const uint v = c[16 * j + r], lo = v & 0x0f0f0f0fu, hi = (v >> 4) & 0x0f0f0f0fu;
                for (int t = 0; t < N; t++) {
                    const global uint *a = q + (t * nb + k + b) * 8 + j;
                    s[t] += dp4(lo, a[0]) + dp4(hi, a[4]);
                }
            }
            const float d = half_at(p + 256 * blocks + 32 * b + 2 * r);
            for (int t = 0; t < N; t++)
                acc[t] += (float)s[t] * scale[t * nb + k + b] * d;
        }
        p += (288 * blocks + 63) & ~63u;
    }
    for (int t = 0; t < N; t++)
        y[t * rows + ROWS * get_group_id(0) + r] = acc[t];
}

/* Sums over the 8 lanes of a row set; called by all lanes. */
inline void join_lanes(local float *part, float acc[N][4], global float *y, uint rows)
{
    const uint l = get_local_id(0);
    for (int t = 0; t < N; t++) {
        for (uint i = 0; i < 4; i++)
            part[4 * l + i] = acc[t][i];
        barrier(CLK_LOCAL_MEM_FENCE);
        if (l < ROWS) { /* row l: row set l/4, lanes l/4, l/4 + 4, ... */
            float s = 0;
            for (uint g = 0; g < 8; g++)
                s += part[4 * (l / 4 + 4 * g) + l % 4];
            y[t * rows + ROWS * get_group_id(0) + l] = s;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
}

/* Columns a multiple of 64: two blocks at a time, 512 bytes. */
kernel void q4_0_wide(const global uchar *w, const global uint *q, const global float *scale, const global int *sum,
                      global float *y, uint cols, uint rows, uint panel_bytes)
{
    local float part[32 * 4];
    const uint l = get_local_id(0), set = l % 4, j = l / 4 % 4, odd = l / 16, nb = cols / 32;
    const global uchar *p = w + (size_t)get_group_id(0) * panel_bytes;
    float acc[N][4];
    for (int t = 0; t < N; t++)
        for (int i = 0; i < 4; i++)
            acc[t][i] = 0;
    for (uint k = 0; k < nb; k += 8) {
        const uint blocks = min(8u, nb - k);
        for (uint b = odd; b < blocks; b += 2) {
            const uint4 v4 = vload4(0, (const global uint *)(p + 256 * b + 64 * j + 16 * set));
            const uint v[4] = {v4.x, v4.y, v4.z, v4.w};
            const float4 d4 = vload_half4(0, (const global half *)(p + 256 * blocks + 32 * b + 8 * set));
            const float d[4] = {d4.x, d4.y, d4.z, d4.w};
            for (int t = 0; t < N; t++) {
                const uint i = t * nb + k + b;
                const uint a0 = q[8 * i + j], a1 = q[8 * i + 4 + j];
                const int off = 8 * (dp4(0x01010101u, a0) + dp4(0x01010101u, a1));
                for (int r = 0; r < 4; r++) {
                    const int s = dp4(v[r] & 0x0f0f0f0fu, a0) + dp4((v[r] >> 4) & 0x0f0f0f0fu, a1) - off;
                    acc[t][r] += (float)s * scale[i] * d[r];
                }
            }
        }
        p += (288 * blocks + 63) & ~63u;
    }
    join_lanes(part, acc, y, rows);
}

kernel void q8_0_row(const global uchar *w, const global uint *q, const global float *scale, const global int *sum,
                     global float *y, uint cols, uint rows, uint panel_bytes)
{
    const uint r = get_local_id(0), nb = cols / 32;
    const global uchar *p = w + (size_t)get_group_id(0) * panel_bytes;
    float acc[N];
    for (int t = 0; t < N; t++)
        acc[t] = 0;
    for (uint k = 0; k < nb; k += 8) {
        const uint blocks = min(8u, nb - k);
        for (uint b = 0; b < blocks; b++) {
            const global uint *c = (const global uint *)(p + 512 * b);
            int s[N];
            for (int t = 0; t < N; t++)
                s[t] = 0;
            for (uint j = 0; j < 8; j++) {
                const uint v = c[16 * j + r];
                for (int t = 0; t < N; t++)
                    s[t] += dp4s(v, q[(t * nb + k + b) * 8 + j]);
            }
            const float d = half_at(p + 512 * blocks + 32 * b + 2 * r);
            for (int t = 0; t < N; t++)
                acc[t] += (float)s[t] * scale[t * nb + k + b] * d;
        }
        p += (544 * blocks + 63) & ~63u;
    }
    for (int t = 0; t < N; t++)
        y[t * rows + ROWS * get_group_id(0) + r] = acc[t];
}

kernel void q4_k_row(const global uchar *w, const global uint *q, const global float *scale, const global int *sum,
                     global float *y, uint cols, uint rows, uint panel_bytes)
{
    const uint r = get_local_id(0), nb = cols / 32;
    const global uchar *p = w + (size_t)get_group_id(0) * panel_bytes;
    float acc[N];
    for (int t = 0; t < N; t++)
        acc[t] = 0;
    for (uint k = 0; k < nb; k += 8, p += 2368) {
        const float d = half_at(p + 2304 + 2 * r), dmin = half_at(p + 2336 + 2 * r);
        float f[N], m[N];
        for (int t = 0; t < N; t++)
            f[t] = m[t] = 0;
        for (uint b = 0; b < 8; b++) {
            const global uint *c = (const global uint *)(p + 256 * b);
            int s[N];
            for (int t = 0; t < N; t++)
                s[t] = 0;
            for (uint j = 0; j < 4; j++) {
                const uint v = c[16 * j + r], lo = v & 0x0f0f0f0fu, hi = (v >> 4) & 0x0f0f0f0fu;
                for (int t = 0; t < N; t++) {
                    const global uint *a = q + (t * nb + k + b) * 8 + j;
                    s[t] += dp4(lo, a[0]) + dp4(hi, a[4]);
                }
            }
            const float sc = (float)p[2048 + 16 * b + r], mn = (float)p[2176 + 16 * b + r];
            for (int t = 0; t < N; t++) {
                const uint i = t * nb + k + b;
                f[t] += (float)s[t] * scale[i] * sc;
                m[t] += mn * (scale[i] * (float)sum[i]);
            }
        }
        for (int t = 0; t < N; t++)
            acc[t] += d * f[t] - dmin * m[t];
    }
    for (int t = 0; t < N; t++)
        y[t * rows + ROWS * get_group_id(0) + r] = acc[t];
}
