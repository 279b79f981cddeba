/* The worker pool: every slice gets a result, stages run in order, a worker that hangs inside a slice holds nobody up, and what it writes later is
 * not seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "cpu/pool.h"
#include "src/base/clock.h"

enum { N_SLICES = 37, N_STAGES = 5, MAX_W = 4 };

typedef struct fixture {
    yk_stage stages[N_STAGES];
    yk_job job;
    _Atomic(uint64_t) owners[N_STAGES * N_SLICES], claims[N_STAGES];
    uint64_t out[MAX_W][N_STAGES][N_SLICES]; /* [worker]: each worker writes only its own */
    _Atomic(int) hang;                       /* 1: the first slice that a worker other than 0 takes hangs; 2: it hangs now */
    _Atomic(bool) release;                   /* lets it go */
    _Atomic(bool) cancel;
} fixture;

static uint32_t half(const yk_stage *st, yk_worker *w)
{
    (void)w;
    return st->max_slices / 2;
}

static uint64_t value(const fixture *f, uint32_t stage, uint32_t slice)
{
    return f->out[yk_stage_owner(&f->job, &f->stages[stage], slice)][stage][slice];
}

static void run(const yk_stage *st, uint32_t slice, yk_worker *w)
{
    fixture *f = st->arg;
    const uint32_t s = st->layer;
    uint64_t sum = 1 + slice;
    for (uint32_t i = 0; s && i < (f->stages[s - 1].prepare ? N_SLICES / 2 : N_SLICES); i++)
        sum += value(f, s - 1, i) % 1000003;
    int one = 1;
    if (w->index && atomic_compare_exchange_strong(&f->hang, &one, 2)) {
        while (!atomic_load(&f->release))
            usleep(100);
        sum = 0xbad; /* a late worker's value */
    }
    f->out[w->index][s][slice] = sum;
    ((uint64_t *)w->scratch)[0]++;
}

static void init(fixture *f)
{
    memset(f, 0, sizeof *f);
    for (uint32_t s = 0; s < N_STAGES; s++)
        f->stages[s] =
            (yk_stage){.name = "t", .run = run, .arg = f, .layer = s, .max_slices = N_SLICES, .first_owner = s * N_SLICES};
    f->stages[2].prepare = half;
    f->job =
        (yk_job){.stages = f->stages, .n_stages = N_STAGES, .owners = f->owners, .claims = f->claims, .cancel = &f->cancel};
}

static uint64_t want[N_STAGES][N_SLICES];

static void check(const fixture *f)
{
    for (uint32_t s = 0; s < N_STAGES; s++)
        for (uint32_t i = 0; i < (f->stages[s].prepare ? N_SLICES / 2 : N_SLICES); i++)
            assert_int_equal(value(f, s, i), want[s][i]);
}

static int setup(void **state)
{
    (void)state;
    for (uint32_t s = 0; s < N_STAGES; s++)
        for (uint32_t i = 0; i < N_SLICES; i++) {
            want[s][i] = 1 + i;
            for (uint32_t j = 0; s && j < (s - 1 == 2 ? N_SLICES / 2 : N_SLICES); j++)
                want[s][i] += want[s - 1][j] % 1000003;
        }
    return 0;
}

static void test_results(void **state)
{
    (void)state;
    static fixture f;
    for (uint32_t n = 1; n <= MAX_W; n++) {
        init(&f);
        yk_pool *pool;
        yk_error err;
        assert_int_equal(yk_pool_open(&pool, &(yk_pool_opts){.n_workers = n, .scratch_bytes = 64, .pin = n % 2}, &err), YK_OK);
        assert_int_equal(yk_pool_size(pool), n);
        for (int rep = 0; rep < 500; rep++) {
            assert_int_equal(yk_pool_run(pool, &f.job, &err), YK_OK);
            check(&f);
        }
        yk_pool_wait_job(pool, &f.job);
        yk_pool_close(&pool);
        assert_null(pool);
    }
}

#ifndef __SANITIZE_THREAD__
static void test_hanging_worker(void **state)
{
    (void)state;
    static fixture f;
    init(&f);
    yk_pool *pool;
    yk_error err;
    assert_int_equal(yk_pool_open(&pool, &(yk_pool_opts){.n_workers = 2, .scratch_bytes = 64}, &err), YK_OK);
    atomic_store(&f.hang, 1);
    /* Worker 1 may be slow to wake up; run until it has taken a slice and hangs in it. The job that it hangs in has to end all the same. */
    const uint64_t start = yk_now_ns();
    while (atomic_load(&f.hang) == 1) {
        assert_int_equal(yk_pool_run(pool, &f.job, &err), YK_OK);
        check(&f);
        assert_true(yk_now_ns() - start < 20000000000u);
    }
    assert_true(yk_pool_rescued(pool) > 0);
    /* Another job runs while it still hangs. */
    static fixture g;
    init(&g);
    assert_int_equal(yk_pool_run(pool, &g.job, &err), YK_OK);
    check(&g);
    atomic_store(&f.release, true);
    yk_pool_wait_job(pool, &f.job);
    check(&f); /* the late value went to worker 1's memory and nobody looks there */
    assert_int_equal(yk_pool_run(pool, &f.job, &err), YK_OK);
    check(&f);
    yk_pool_close(&pool);
}
#endif

static void test_cancel(void **state)
{
    (void)state;
    static fixture f;
    init(&f);
    yk_pool *pool;
    yk_error err;
    assert_int_equal(yk_pool_open(&pool, &(yk_pool_opts){.n_workers = 2, .scratch_bytes = 64}, &err), YK_OK);
    atomic_store(&f.cancel, true);
    assert_int_equal(yk_pool_run(pool, &f.job, &err), YK_ERR_CANCELLED);
    atomic_store(&f.cancel, false);
    assert_int_equal(yk_pool_run(pool, &f.job, &err), YK_OK);
    check(&f);
    yk_pool_close(&pool);
}

static void test_too_many(void **state)
{
    (void)state;
    yk_pool *pool;
    yk_error err;
    assert_int_equal(yk_pool_open(&pool, &(yk_pool_opts){.n_workers = YK_MAX_WORKERS + 1}, &err), YK_ERR_USAGE);
    assert_null(pool);
    yk_pool_close(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results),
#ifndef __SANITIZE_THREAD__
        cmocka_unit_test(test_hanging_worker),
#endif
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_too_many),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
