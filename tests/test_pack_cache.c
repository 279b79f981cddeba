/* The pack cache: the same bits with it as without, for every instruction set, with and without a plan; whatever is wrong with file or folder costs one
 * warning and never a bit; writers at the same time. And the checksum it relies on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cpu/pack.h"
#include "partition/plan.h"
#include "src/base/crc32c.h"
#include "src/engine/auto.h"
#include "src/engine/pack_cache.h"
#include "src/engine/place.h"

enum { N_PROMPT = 20, N_STEPS = 3, CONTEXT = 64 };

/* A folder of the test's own, and what it is asked for. */
typedef struct rig {
    char dir[64], shipped[4096];
    yk_model *model;
    uint32_t n_vocab;
    float *want; /* of the shipped model, without a cache */
} rig;

/* ---- lines of the log ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int warnings, written, read;
    char last[512];
} lines;

static void on_line(void *user, yk_log_level level, const char *text)
{
    (void)user;
    pthread_mutex_lock(&lock);
    if (level <= YK_LOG_WARN && strstr(text, "pack cache")) {
        lines.warnings++;
        snprintf(lines.last, sizeof lines.last, "%s", text);
    }
    lines.written += strstr(text, "pack cache") && strstr(text, ": written");
    lines.read += strstr(text, "pack cache") && strstr(text, ": read");
    pthread_mutex_unlock(&lock);
}

/* ---- running ---- */

static void base_opts(yk_engine_opts *o, const char *dir)
{
    yk_engine_opts_init(o);
    o->threads = 2;
    o->context = CONTEXT;
    o->batch = 32;
    o->device = "cpu";
    o->pack_cache = dir;
}

/* Logits [N_STEPS][n_vocab] of a prompt and the tokens that are best behind it. */
static void run(const yk_model *m, const yk_engine_opts *o, float *logits)
{
    yk_engine *e;
    yk_seq *seq;
    yk_error err = {0};
    yk_model_info info;
    int32_t tokens[N_PROMPT];
    yk_model_get_info(m, &info);
    for (int i = 0; i < N_PROMPT; i++)
        tokens[i] = (int32_t)((uint32_t)(1 + 17 * i) % info.n_vocab);
    if (yk_engine_open(&e, m, o, &err) != YK_OK || yk_seq_open(&seq, e, &err) != YK_OK)
        fail_msg("%s", err.text);
    for (int s = 0; s < N_STEPS; s++) {
        const yk_batch_entry b = {seq, tokens, s ? 1 : N_PROMPT, YK_LOGITS_LAST};
        if (yk_decode(e, &b, 1, &err) != YK_OK)
            fail_msg("%s", err.text);
        const float *row = memcpy(logits + (size_t)s * info.n_vocab, yk_logits(e, 0, 0), info.n_vocab * sizeof *row);
        tokens[0] = 0;
        for (uint32_t i = 0; i < info.n_vocab; i++)
            tokens[0] = row[i] > row[tokens[0]] ? (int32_t)i : tokens[0];
    }
    yk_seq_close(&seq);
    yk_engine_close(&e);
}

/* Run with the cache and compare; the lines that came meanwhile are left in `lines`. */
static void same(const yk_model *m, const yk_engine_opts *o, const float *want, const char *what)
{
    yk_model_info info;
    yk_model_get_info(m, &info);
    const size_t n = (size_t)N_STEPS * info.n_vocab;
    float *got = malloc(n * sizeof *got);
    memset(&lines, 0, sizeof lines);
    run(m, o, got);
    if (memcmp(got, want, n * sizeof *got) != 0)
        fail_msg("%s: other logits than without a cache", what);
    free(got);
}

static void expect(const char *what, int warnings, int written, int read)
{
    if (lines.warnings != warnings || lines.written != written || lines.read != read)
        fail_msg("%s: %d warnings, %d written, %d read; not %d, %d, %d; last warning: %s", what, lines.warnings, lines.written,
                 lines.read, warnings, written, read, lines.last);
}

/* ---- files ---- */

/* The files in a folder; `path` gets the last one's. */
static int files_in(const char *dir, char *path, size_t capacity)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(path, capacity, "%s/%s", dir, e->d_name);
            n++;
        }
    if (d)
        closedir(d);
    return n;
}

static void empty(const char *dir)
{
    char path[1024];
    while (files_in(dir, path, sizeof path))
        if (remove(path) != 0)
            fail_msg("%s: %s", path, strerror(errno));
}

static uint8_t *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) != 0)
        fail_msg("%s: %s", path, strerror(errno));
    uint8_t *p = malloc((size_t)st.st_size + 1);
    *n = fread(p, 1, (size_t)st.st_size, f);
    assert_int_equal(*n, st.st_size);
    fclose(f);
    return p;
}

static void spit(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0)
        fail_msg("%s: %s", path, strerror(errno));
}

static int group_setup(void **state)
{
    static rig r;
    yk_error err = {0};
    yk_model_info info;
    yk_engine_opts o;
    const char *root = getenv("YOKE_SOURCE"), *tmp = getenv("TMPDIR");
    snprintf(r.shipped, sizeof r.shipped, "%s/models/yoke-tiny-mixtral-q4_k_m.gguf", root ? root : ".");
    snprintf(r.dir, sizeof r.dir, "%.40s/yoke-cache-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(r.dir) || yk_model_open(&r.model, r.shipped, NULL, &err) != YK_OK) {
        print_error("%s %s\n", r.dir, err.text);
        return -1;
    }
    yk_model_get_info(r.model, &info);
    r.n_vocab = info.n_vocab;
    r.want = malloc((size_t)N_STEPS * info.n_vocab * sizeof *r.want);
    base_opts(&o, NULL);
    run(r.model, &o, r.want);
    yk_log_set(on_line, NULL, YK_LOG_INFO);
    *state = &r;
    return 0;
}

static int group_teardown(void **state)
{
    rig *r = *state;
    empty(r->dir);
    rmdir(r->dir);
    free(r->want);
    yk_model_close(&r->model);
    return 0;
}

/* ---- the checksum ---- */

static void test_crc(void **state)
{
    (void)state;
    static uint8_t p[9000]; /* quarters of up to eight steps of 256 bytes and some more */
    uint8_t text[16];
    uint32_t z = 5;
    assert_int_equal(yk_crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(yk_crc32c_plain(0, "123456789", 9), 0xe3069283);
    assert_int_equal(yk_crc32c(0, NULL, 0), 0);
    memset(p, 0, 32);
    assert_int_equal(yk_crc32c(0, p, 32), 0x8a9136aa); /* RFC 3720, B.4 */
    for (size_t i = 0; i < sizeof p; i++)
        p[i] = (uint8_t)((z = z * 1664525u + 1013904223u) >> 24);
    for (size_t n = 0; n < sizeof p; n += 1 + n / 9) {
        const size_t q = n / 32 * 8;
        assert_int_equal(yk_crc32c(7, p, n), yk_crc32c_plain(7, p, n));
        assert_int_equal(yk_crc32c(yk_crc32c(0, p, n / 3), p + n / 3, n - n / 3), yk_crc32c_plain(0, p, n));
        for (size_t i = 0; i < 4; i++) {
            const uint32_t c = yk_crc32c_plain(0, p + i * q, i < 3 ? q : n - 3 * q);
            for (size_t k = 0; k < 4; k++)
                text[4 * i + k] = (uint8_t)(c >> 8 * k);
        }
        assert_int_equal(yk_crc32c_block(p, n), yk_crc32c_plain(0, text, 16));
    }
}

/* Packed bytes of every type. Where this fails the layout has changed: give YK_PACK_LAYOUT a new number, and put the new checksum here. */
static void test_layout(void **state)
{
    (void)state;
    enum { ROWS = 35, COLS = 2 * YK_TILE_COLS };
    static uint8_t rows[ROWS * COLS * 4], packed[(ROWS + YK_TILE_ROWS) * COLS * 5] __attribute__((aligned(64)));
    uint32_t crc = 0, z = 99, n_types = 0;
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        uint64_t row = 0;
        if (!yk_pack_has((yk_type)t))
            continue;
        yk_type_row_bytes((yk_type)t, COLS, &row);
        for (size_t i = 0; i < ROWS * row; i++)
            rows[i] = (uint8_t)((z = z * 1664525u + 1013904223u) >> 24);
        const uint64_t n = yk_packed_bytes((yk_type)t, ROWS, COLS);
        assert_true(n <= sizeof packed);
        yk_pack((yk_type)t, rows, row, ROWS, 0, COLS, packed);
        crc = yk_crc32c(crc, packed, n);
        n_types++;
    }
    assert_int_equal(n_types, 16);
    assert_int_equal(YK_PACK_LAYOUT, 1);
    assert_int_equal(crc, 0xefefbdc5);
}

/* ---- round trips ---- */

static void round_trip(const rig *r, const yk_model *m, const char *what)
{
    static const char *const isas[] = {"ref", "avxvnni", "avx512", "amx"};
    char path[1024];
    yk_engine_opts o;
    yk_model_info info;
    yk_model_get_info(m, &info);
    float *want = malloc((size_t)N_STEPS * info.n_vocab * sizeof *want);
    int n_isas = 0;
    empty(r->dir);
    for (int i = -1; i < (int)(sizeof isas / sizeof *isas); i++) { /* written by the best one, read by all */
        yk_engine *e;
        base_opts(&o, NULL);
        o.isa = i < 0 ? NULL : isas[i];
        if (yk_engine_open(&e, m, &o, NULL) != YK_OK)
            continue;
        yk_engine_close(&e);
        run(m, &o, want);
        o.pack_cache = r->dir;
        o.threads = i < 0 ? 1 : 2;
        same(m, &o, want, what);
        expect(what, 0, i < 0, i >= 0);
        assert_int_equal(files_in(r->dir, path, sizeof path), 1);
        n_isas++;
    }
    assert_true(n_isas >= 2);
    o.no_repack = true;
    o.isa = NULL;
    o.pack_cache = NULL;
    run(m, &o, want);
    o.pack_cache = r->dir;
    same(m, &o, want, what);
    expect("--no-repack", 0, 0, 0);
    free(want);
}

static void test_round_trip(void **state)
{
    const rig *r = *state;
    static const char *const names[] = {"w64-qwen2moe-8x4-q4_k_m.gguf", "w256-llama-iq4_xs.gguf", "stories260K-tied-f32.gguf",
                                        "w64-gpt-oss-4x2-f16.gguf", "w128-phi3-f16.gguf"};
    const char *fixtures = getenv("YOKE_FIXTURES");
    round_trip(r, r->model, "the shipped model");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        yk_model *m;
        snprintf(path, sizeof path, "%s/%s", fixtures ? fixtures : "../shared/models", names[i]);
        if (yk_model_open(&m, path, NULL, NULL) != YK_OK) {
            print_message("skipped: %s is not there\n", path);
            continue;
        }
        round_trip(r, m, names[i]);
        yk_model_close(&m);
    }
}

/* Plans of the null device, which computes: what one writes the next one and the CPU alone read. */
static void test_plans(void **state)
{
    const rig *r = *state;
    yk_shape shape;
    yk_error err = {0};
    float *want = malloc((size_t)N_STEPS * r->n_vocab * sizeof *want);
    int on_device = 0;
    yk_plan_limits limits = {.context = CONTEXT, .max_seqs = 1, .batch = 32, .kv_elem_bytes = 2, .n_devices = 1};
    snprintf(limits.devices[0].name, sizeof limits.devices[0].name, "null:0");
    limits.devices[0].budget_bytes = 1ull << 30;
    if (yk_auto_shape(&shape, r->model, &err) != YK_OK)
        fail_msg("%s", err.text);
    for (uint64_t seed = 1; seed <= 6; seed++) {
        yk_plan plan;
        yk_engine_opts o;
        if (yk_plan_random(&plan, seed, &shape, &limits, &err) != YK_OK)
            fail_msg("%s", err.text);
        on_device += plan.n_devices > 0;
        base_opts(&o, NULL);
        o.plan = &plan;
        o.device = plan.n_devices ? "null:compute" : "cpu";
        run(r->model, &o, want);
        o.pack_cache = r->dir;
        empty(r->dir);
        same(r->model, &o, want, "a plan writes");
        expect("a plan writes", 0, 1, 0);
        same(r->model, &o, want, "a plan reads");
        expect("a plan reads", 0, 0, 1);
        base_opts(&o, r->dir);
        same(r->model, &o, r->want, "the CPU reads what a plan wrote");
        expect("the CPU reads what a plan wrote", 0, 0, 1);
        yk_plan_clear(&plan);
    }
    assert_true(on_device >= 3);
    yk_shape_close(&shape);
    free(want);
}

/* ---- damage ---- */

/* A file of the cache's place with these bytes: the right logits, one warning, and behind it a cache that is right again. */
static void damaged(const rig *r, const char *path, const void *bytes, size_t n, const char *what)
{
    yk_engine_opts o;
    char other[1024];
    base_opts(&o, r->dir);
    spit(path, bytes, n);
    same(r->model, &o, r->want, what);
    if (lines.warnings != 1 || lines.read || !strstr(lines.last, path))
        fail_msg("%s: %d warnings, read %d: %s", what, lines.warnings, lines.read, lines.last);
    if (!lines.written) { /* removed: the next one writes it */
        assert_int_equal(files_in(r->dir, other, sizeof other), 0);
        same(r->model, &o, r->want, what);
        expect(what, 0, 1, 0);
    }
    assert_int_equal(files_in(r->dir, other, sizeof other), 1);
    assert_string_equal(path, other);
}

static void seal(uint8_t *p, uint32_t n_entries)
{
    yk_cache_header h;
    memcpy(&h, p, sizeof h);
    h.table_crc = yk_crc32c(0, p + sizeof h, n_entries * sizeof(yk_cache_entry));
    h.header_crc = yk_crc32c(0, &h, offsetof(yk_cache_header, header_crc));
    memcpy(p, &h, sizeof h);
}

static void test_damage(void **state)
{
    const rig *r = *state;
    char path[1024], what[100];
    yk_engine_opts o;
    yk_cache_header h;
    size_t n, again;
    empty(r->dir);
    base_opts(&o, r->dir);
    same(r->model, &o, r->want, "writing");
    assert_int_equal(files_in(r->dir, path, sizeof path), 1);
    uint8_t *good = slurp(path, &n), *p = malloc(n + 1);
    memcpy(&h, good, sizeof h);
    assert_true(h.n_entries > 40 && h.file_bytes == n);
    assert_int_equal(yk_crc32c(0, good + h.data_at, n - h.data_at), 0x7ec9eb37); /* cut units too: see test_layout */
    const size_t table = sizeof h + h.n_entries * sizeof(yk_cache_entry);
    const size_t cuts[] = {0,     1,     71,   72, 73, sizeof h + 40, table - 1, table, h.data_at - 1, h.data_at, h.data_at + 1,
                           n / 2, n - 1, n + 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        memcpy(p, good, n);
        p[n] = 0;
        snprintf(what, sizeof what, "cut after %zu of %zu", cuts[i], n);
        damaged(r, path, p, cuts[i], what);
    }
    for (size_t i = 0; i < table; i = i < sizeof h + 80 ? i + 1 : i + 997) {
        memcpy(p, good, n);
        p[i] ^= (uint8_t)(1 << i % 8);
        snprintf(what, sizeof what, "byte %zu of header and table", i);
        damaged(r, path, p, n, what);
    }
    for (size_t i = 0; i < 8; i++) {
        const size_t at = h.data_at + (n - 1 - h.data_at) / 7 * i;
        memcpy(p, good, n);
        p[at] ^= 0x10;
        snprintf(what, sizeof what, "byte %zu of the data", at);
        damaged(r, path, p, n, what);
    }
    /* With checksums that are right: what the file says of itself. */
    const struct {
        size_t at;
        const char *says;
    } fields[] = {{offsetof(yk_cache_header, version), "version 2"},
                  {offsetof(yk_cache_header, layout), "layout 0"},
                  {offsetof(yk_cache_header, model_bytes), "another model"},
                  {offsetof(yk_cache_header, model_times), "another model"},
                  {offsetof(yk_cache_header, model_head), "another model"},
                  {offsetof(yk_cache_header, model_samples), "another model"},
                  {offsetof(yk_cache_header, n_entries), "table"},
                  {offsetof(yk_cache_header, data_at), "table"},
                  {offsetof(yk_cache_header, file_bytes), "table"},
                  {sizeof h + offsetof(yk_cache_entry, layer), "table"},
                  {sizeof h + 40 * 5 + offsetof(yk_cache_entry, what), "table"},
                  {sizeof h + 40 * 7 + offsetof(yk_cache_entry, offset), "table"},
                  {table - 8, "table"}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        memcpy(p, good, n);
        p[fields[i].at] ^= i ? 1 : 3;
        seal(p, h.n_entries);
        same(r->model, &o, r->want, fields[i].says);
        expect("the file that is right", 0, 0, 1);
        spit(path, p, n);
        same(r->model, &o, r->want, fields[i].says);
        expect(fields[i].says, 1, 1, 0);
        assert_non_null(strstr(lines.last, fields[i].says));
    }
    uint8_t *now = slurp(path, &again);
    assert_int_equal(again, n);
    assert_memory_equal(now, good, n);
    free(now);
    free(good);
    free(p);
}

/* ---- folders and disks ---- */

static void test_places(void **state)
{
    const rig *r = *state;
    char path[1024], dir[600];
    yk_engine_opts o;
    empty(r->dir);
    base_opts(&o, "/dev/full");
    same(r->model, &o, r->want, "a device for a folder");
    expect("a device for a folder", 1, 0, 0);
    snprintf(dir, sizeof dir, "%s/a/b", r->dir);
    base_opts(&o, dir);
    same(r->model, &o, r->want, "parents that are not there");
    expect("parents that are not there", 1, 0, 0);
    yk_engine *e;
    base_opts(&o, "");
    assert_int_equal(yk_engine_open(&e, r->model, &o, NULL), YK_ERR_USAGE);
    snprintf(dir, sizeof dir, "%s/new", r->dir);
    base_opts(&o, dir);
    same(r->model, &o, r->want, "a new folder");
    expect("a new folder", 0, 1, 0);
    assert_int_equal(files_in(dir, path, sizeof path), 1);
    /* What is at the file's place but is no file stays. */
    struct stat st;
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    same(r->model, &o, r->want, "a folder at its place");
    expect("a folder at its place", 1, 0, 0);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    same(r->model, &o, r->want, "a pipe at its place");
    expect("a pipe at its place", 1, 0, 0);
    assert_true(stat(path, &st) == 0 && S_ISFIFO(st.st_mode));
    assert_int_equal(remove(path), 0);
    assert_int_equal(symlink("/dev/full", path), 0);
    same(r->model, &o, r->want, "a full device at its place");
    expect("a full device at its place", 1, 0, 0);
    assert_int_equal(remove(path), 0);
    if (geteuid() != 0) {
        assert_int_equal(chmod(dir, 0), 0);
        same(r->model, &o, r->want, "a folder that is shut");
        expect("a folder that is shut", 1, 0, 0);
        assert_int_equal(chmod(dir, 0700), 0);
    } else {
        print_message("skipped: root opens every folder\n");
    }
    assert_int_equal(rmdir(dir), 0);
}

/* A limit on the size of files, before the cache is opened: nothing is left, and no signal kills the process. */
static void test_size_limit(void **state)
{
    const rig *r = *state;
    char path[1024];
    yk_engine_opts o;
    struct rlimit before, small;
    empty(r->dir);
    base_opts(&o, r->dir);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    same(r->model, &o, r->want, "a limit of 1 MiB");
    setrlimit(RLIMIT_FSIZE, &before);
    expect("a limit of 1 MiB", 1, 0, 0);
    assert_int_equal(files_in(r->dir, path, sizeof path), 0);
}

/* The disk becomes full while the cache is written. */
static void test_late_failure(void **state)
{
    const rig *r = *state;
    char path[1024];
    yk_pack_cache *c;
    yk_error err = {0};
    struct rlimit before, small;
    empty(r->dir);
    memset(&lines, 0, sizeof lines);
    if (yk_pack_cache_open(&c, r->model, 8, r->dir, &err) != YK_OK)
        fail_msg("%s", err.text);
    assert_true(yk_pack_cache_writing(c));
    uint8_t *bytes = calloc(1, 1 << 24);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_FSIZE, &small);
    uint32_t n = 0;
    for (uint32_t i = 0; yk_pack_cache_writing(c) && (i = yk_pack_cache_missing(c, i)) != YK_CACHE_NONE; i++, n++)
        yk_pack_cache_put(c, i, bytes);
    assert_true(n > 1);
    assert_false(yk_pack_cache_writing(c));
    yk_pack_cache_finish(&c);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    expect("a limit met late", 1, 0, 0);
    assert_null(c);
    assert_int_equal(files_in(r->dir, path, sizeof path), 0);
    free(bytes);
}

/* A file system of 2 MiB, in a namespace of a child's own. */
static void test_full_disk(void **state)
{
    const rig *r = *state;
    empty(r->dir);
    const pid_t pid = fork();
    if (pid == 0) {
        yk_engine_opts o;
        char path[1024];
        if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
            mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("tmpfs", r->dir, "tmpfs", 0, "size=2m") != 0)
            _exit(77);
        float *got = malloc((size_t)N_STEPS * r->n_vocab * sizeof *got);
        base_opts(&o, r->dir);
        memset(&lines, 0, sizeof lines);
        run(r->model, &o, got);
        const bool ok = memcmp(got, r->want, (size_t)N_STEPS * r->n_vocab * sizeof *got) == 0 && lines.warnings == 1 &&
                        !lines.written && strstr(lines.last, strerror(ENOSPC)) && files_in(r->dir, path, sizeof path) == 0;
        free(got);
        _exit(ok ? 0 : 1);
    }
    int rc = 0;
    assert_int_equal(waitpid(pid, &rc, 0), pid);
    if (WIFEXITED(rc) && WEXITSTATUS(rc) == 77)
        print_message("skipped: no file system can be mounted here\n");
    else
        assert_int_equal(rc, 0);
}

/* ---- other models ---- */

/* A copy that is touched, and one whose weights differ though size, time and metadata are the same. */
static void test_changed_model(void **state)
{
    const rig *r = *state;
    char copy[512], dir[512], path[1024];
    size_t n;
    yk_engine_opts o;
    empty(r->dir);
    snprintf(copy, sizeof copy, "%s/copy.gguf", r->dir);
    snprintf(dir, sizeof dir, "%s/cache", r->dir);
    uint8_t *bytes = slurp(r->shipped, &n);
    const struct timespec times[3] = {{1000, 0}, {2000, 0}, {2000, 0}};
    base_opts(&o, dir);
    for (int i = 0; i < 3; i++) {
        yk_model *m;
        yk_error err = {0};
        if (i == 2) /* the middle of a norm's f32 values */
            for (uint32_t t = 0; t < r->model->gguf.n_tensors; t++)
                if (strcmp(r->model->gguf.tensors[t].name, "output_norm.weight") == 0)
                    bytes[r->model->gguf.tensors[t].offset + r->model->gguf.tensors[t].n_bytes / 8 * 4 + 2] ^= 0x10;
        spit(copy, bytes, n);
        const struct timespec both[2] = {times[i], times[i]};
        assert_int_equal(utimensat(AT_FDCWD, copy, both, 0), 0);
        if (yk_model_open(&m, copy, NULL, &err) != YK_OK)
            fail_msg("%s", err.text);
        float *want = malloc((size_t)N_STEPS * r->n_vocab * sizeof *want);
        o.pack_cache = NULL;
        run(m, &o, want);
        assert_int_equal(memcmp(want, r->want, (size_t)N_STEPS * r->n_vocab * sizeof *want) != 0, i == 2);
        o.pack_cache = dir;
        same(m, &o, want, "a model that has changed");
        expect("a model that has changed", 0, 1, 0);
        same(m, &o, want, "a model that has changed");
        expect("a model that has changed", 0, 0, 1);
        assert_int_equal(files_in(dir, path, sizeof path), i + 1);
        free(want);
        yk_model_close(&m);
    }
    free(bytes);
    empty(dir);
}

/* ---- at the same time ---- */

static void *open_in_thread(void *arg)
{
    const rig *r = arg;
    yk_engine_opts o;
    float *got = malloc((size_t)N_STEPS * r->n_vocab * sizeof *got);
    base_opts(&o, r->dir);
    run(r->model, &o, got);
    const bool ok = memcmp(got, r->want, (size_t)N_STEPS * r->n_vocab * sizeof *got) == 0;
    free(got);
    return ok ? arg : NULL;
}

static void test_writers(void **state)
{
    rig *r = *state;
    enum { N = 4, ROUNDS = 3 };
    char path[1024];
    yk_engine_opts o;
    base_opts(&o, r->dir);
    for (int round = 0; round < ROUNDS; round++) {
        pid_t pids[N];
        empty(r->dir);
        for (int i = 0; i < N; i++)
            if ((pids[i] = fork()) == 0) {
                memset(&lines, 0, sizeof lines);
                _exit(open_in_thread(r) && !lines.warnings ? 0 : 1);
            }
        for (int i = 0; i < N; i++) {
            int rc = 1;
            assert_int_equal(waitpid(pids[i], &rc, 0), pids[i]);
            assert_int_equal(rc, 0);
        }
        same(r->model, &o, r->want, "behind processes");
        expect("behind processes", 0, 0, 1);
        empty(r->dir);
        memset(&lines, 0, sizeof lines);
        pthread_t threads[N];
        for (int i = 0; i < N; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, open_in_thread, r), 0);
        for (int i = 0; i < N; i++) {
            void *ok = NULL;
            pthread_join(threads[i], &ok);
            assert_non_null(ok);
        }
        assert_int_equal(lines.warnings, 0);
        same(r->model, &o, r->want, "behind threads");
        expect("behind threads", 0, 0, 1);
        assert_int_equal(files_in(r->dir, path, sizeof path), 1);
    }
}

static bool stop(void *user, const char *what, uint64_t done, uint64_t total)
{
    (void)done;
    (void)total;
    *(bool *)user |= strstr(what, "writing the pack cache") != NULL;
    return !strstr(what, "writing the pack cache");
}

static void test_cancel(void **state)
{
    const rig *r = *state;
    char path[1024];
    yk_engine_opts o;
    yk_engine *e;
    bool asked = false;
    empty(r->dir);
    base_opts(&o, r->dir);
    o.progress = stop;
    o.progress_user = &asked;
    assert_int_equal(yk_engine_open(&e, r->model, &o, NULL), YK_ERR_CANCELLED);
    assert_true(asked);
    assert_int_equal(files_in(r->dir, path, sizeof path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc),           cmocka_unit_test(test_layout),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_plans),         cmocka_unit_test(test_damage),       cmocka_unit_test(test_places),
        cmocka_unit_test(test_size_limit),    cmocka_unit_test(test_late_failure), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_changed_model), cmocka_unit_test(test_writers),      cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
