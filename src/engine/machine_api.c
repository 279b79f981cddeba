/* The machine of yoke.h: measured, read, written, and kept in the user's cache. */
#include <inttypes.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpu/pack.h"
#include "gpu/kernels.h"
#include "src/base/env.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/engine/auto.h"

enum { MAX_FILE = 1 << 20, MAX_PATH = 4096 };

void yk_machine_opts_init(yk_machine_opts *opts)
{
    *opts = (yk_machine_opts){.quick = true};
}

void yk_machine_close(yk_machine **machine)
{
    yk_free(*machine);
    *machine = NULL;
}

bool yk_machine_is_noisy(const yk_machine *machine)
{
    return machine->noisy;
}

/* ---- which build this is ------------------------------------------------------------------------------------------------------------- */

typedef struct build_id {
    uintptr_t inside; /* an address of this library */
    char text[41];
} build_id;

static void note_of(const uint8_t *p, size_t n, char *text)
{
    while (n >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) h;
        memcpy(&h, p, sizeof h);
        const size_t name = (h.n_namesz + 3ull) / 4 * 4, desc = (h.n_descsz + 3ull) / 4 * 4;
        if (name > n - sizeof h || desc > n - sizeof h - name)
            return;
        const uint8_t *id = p + sizeof h + name;
        if (h.n_type == NT_GNU_BUILD_ID && h.n_namesz == 4 && memcmp(p + sizeof h, "GNU", 4) == 0)
            for (uint32_t i = 0; i < h.n_descsz && i < 8; i++)
                snprintf(text + 2 * i, 3, "%02x", id[i]);
        p = id + desc;
        n -= sizeof h + name + desc;
    }
}

static int look_at(struct dl_phdr_info *info, size_t size, void *user)
{
    (void)size;
    build_id *id = user;
    bool mine = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        mine = mine || (h->p_type == PT_LOAD && id->inside - (info->dlpi_addr + h->p_vaddr) < h->p_memsz);
    }
    for (int i = 0; mine && i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_NOTE)
            note_of((const uint8_t *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr), info->dlpi_phdr[i].p_memsz, id->text);
    return mine;
}

/* "yoke 0.1.0, build 0123456789abcdef": the version, and what the linker wrote into this library (nothing with linkers that write nothing). */
static void identify_build(char *text, size_t capacity)
{
    build_id id = {.inside = (uintptr_t)&identify_build};
    dl_iterate_phdr(look_at, &id);
    snprintf(text, capacity, "yoke %s%s%s", yk_version(), id.text[0] ? ", build " : "", id.text);
}

/* ---- files --------------------------------------------------------------------------------------------------------------------------- */

yk_status yk_machine_load(yk_machine **out, const char *path, yk_error *err)
{
    char *text;
    size_t n;
    yk_error inner = {0};
    *out = NULL;
    YK_FAIL_IF(!path, err, YK_ERR_USAGE, "yk_machine_load: path is NULL");
    YK_TRY(yk_read_file(&text, &n, path, MAX_FILE, err));
    yk_machine *m = yk_alloc(YK_MEM_PLAN, 1, sizeof *m);
    yk_status st = m ? yk_machine_read(m, text, n, &inner) : yk_fail_memory(&inner, sizeof *m, "a machine");
    yk_free(text);
    if (st != YK_OK) {
        yk_machine_close(&m);
        return yk_fail_in_file(err, st, path, &inner);
    }
    *out = m;
    return YK_OK;
}

uint64_t yk_cache_hash(uint64_t h, const char *s)
{
    do
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    while (*s++);
    return h;
}

yk_status yk_cache_file(char *path, size_t capacity, const char *what, uint64_t hash, yk_error *err)
{
    int len;
    const char *cache = yk_env_cache_home(), *home = yk_env_home();
    if (cache && *cache == '/') /* a relative one is to be ignored: XDG base directory specification */
        len = snprintf(path, capacity, "%s/yoke/%s-%016" PRIx64 ".json", cache, what, hash);
    else if (home && *home)
        len = snprintf(path, capacity, "%s/.cache/yoke/%s-%016" PRIx64 ".json", home, what, hash);
    else
        return yk_fail(err, YK_ERR_RUNTIME, "no place for the machine's measurement: neither XDG_CACHE_HOME nor HOME is set");
    YK_FAIL_IF(len < 0 || (size_t)len >= capacity, err, YK_ERR_RUNTIME, "the path of the user's cache folder is too long");
    return YK_OK;
}

/* What must be the same for a measurement to hold: CPU, its use, the devices that are there, and this build. */
static yk_status cache_path(char *path, size_t capacity, const char *cpu, const char *isa, uint32_t threads,
                            const char *null_options, yk_error *err)
{
    uint32_t n;
    char number[16], build[128];
    yk_device_info *list = yk_alloc(YK_MEM_RUNTIME, YK_DEVICE_LIST, sizeof *list);
    if (!list)
        return yk_fail_memory(err, YK_DEVICE_LIST * sizeof *list, "the list of devices");
    const yk_status st = yk_device_list(list, YK_DEVICE_LIST, &n, null_options, err);
    snprintf(number, sizeof number, "%u", threads);
    identify_build(build, sizeof build);
    uint64_t h = yk_cache_hash(yk_cache_hash(yk_cache_hash(yk_cache_hash(YK_CACHE_HASH, cpu), isa), number), build);
    for (uint32_t i = 0; st == YK_OK && i < n && i < YK_DEVICE_LIST; i++)
        if (list[i].usable)
            h = yk_cache_hash(yk_cache_hash(yk_cache_hash(h, list[i].name), list[i].description), list[i].driver);
    yk_free(list);
    YK_TRY(st);
    return yk_cache_file(path, capacity, "machine", h, err);
}

static const char *null_options_of(const yk_machine *m)
{
    for (uint32_t i = 0; i < m->n_devices; i++)
        if (strcmp(m->devices[i].backend, "null") == 0)
            return "compute";
    return NULL;
}

void yk_cache_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700); /* one that is there or cannot be made is found when the file is written */
        *slash = '/';
    }
}

static yk_status save_to(const yk_machine *m, const char *path, yk_error *err)
{
    char *text;
    size_t n;
    YK_TRY(yk_machine_write(m, &text, &n, err));
    const yk_status st = yk_write_file(path, text, n, err);
    yk_free(text);
    return st;
}

yk_status yk_machine_save(const yk_machine *m, const char *path, yk_error *err)
{
    char cache[MAX_PATH];
    if (path)
        return save_to(m, path, err);
    YK_TRY(cache_path(cache, sizeof cache, m->cpu, m->isa, m->threads, null_options_of(m), err));
    yk_cache_folders(cache);
    return save_to(m, cache, err);
}

yk_status yk_machine_cache_path(const yk_machine *m, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    char path[MAX_PATH];
    YK_TRY(cache_path(path, sizeof path, m->cpu, m->isa, m->threads, null_options_of(m), err));
    yk_text_out(path, strlen(path), buf, capacity, n_bytes);
    return YK_OK;
}

yk_status yk_machine_text(const yk_machine *m, char *buf, size_t capacity, size_t *n_bytes, yk_error *err)
{
    char *text;
    size_t n;
    YK_TRY(yk_machine_write(m, &text, &n, err));
    yk_text_out(text, n, buf, capacity, n_bytes);
    yk_free(text);
    return YK_OK;
}

/* ---- measuring ------------------------------------------------------------------------------------------------------------------------ */

void yk_machine_need_types(yk_profile_opts *need, const yk_shape *shape)
{
    if (shape->head.bytes)
        need->types[shape->head.type] = true;
    for (uint32_t l = 0; l < shape->n_layers; l++) {
        const yk_shape_layer *y = &shape->layers[l];
        if (y->router.bytes)
            need->types[y->router.type] = true;
        for (int m = 0; m < YK_ATTN_MATS; m++)
            if (y->attn[m].bytes)
                need->types[y->attn[m].type] = true;
        for (int g = 0; g < YK_PART_N; g++)
            for (int m = 0; m < YK_PART_MATS && y->part[g].n; m++) {
                need->types[y->part[g].type[m]] = true;
                need->few[y->part[g].type[m]] |= g == YK_PART_EXP;
                need->down[y->part[g].type[m]] |= m == YK_MAT_DOWN;
                need->narrow[y->part[g].type[m]] |= m == YK_MAT_DOWN && y->part[g].cut.n < yk_down_units(0);
            }
    }
}

static yk_status measure(yk_machine **out, const yk_profile_opts *what, yk_error *err)
{
    char build[128];
    yk_profile_opts need = *what;
    identify_build(build, sizeof build);
    need.build = build;
    *out = NULL;
    yk_machine *m = yk_alloc(YK_MEM_PLAN, 1, sizeof *m);
    if (!m)
        return yk_fail_memory(err, sizeof *m, "a machine");
    const yk_status st = yk_profile(m, &need, err);
    if (st != YK_OK)
        yk_machine_close(&m);
    *out = m;
    return st;
}

yk_status yk_machine_profile(yk_machine **out, const yk_machine_opts *opts, yk_error *err)
{
    yk_machine_opts defaults;
    yk_machine_opts_init(&defaults);
    const yk_machine_opts *o = opts ? opts : &defaults;
    yk_profile_opts need = {.quick = o->quick, .progress = o->progress, .progress_user = o->progress_user};
    *out = NULL;
    YK_FAIL_IF(o->threads > YK_MAX_WORKERS, err, YK_ERR_USAGE, "threads %u is outside 1..%d", o->threads, YK_MAX_WORKERS);
    YK_TRY(yk_engine_isa(o->isa, &need.isa, err));
    YK_TRY(yk_engine_workers(o->threads, &need.threads, err));
    if (o->model) {
        yk_shape shape;
        YK_TRY(yk_auto_shape(&shape, o->model, err));
        yk_machine_need_types(&need, &shape);
        yk_shape_close(&shape);
    } else if (o->quick)
        need.types[YK_TYPE_Q4_K] = need.types[YK_TYPE_Q8_0] = need.types[YK_TYPE_F16] = need.down[YK_TYPE_Q4_K] =
            need.down[YK_TYPE_Q8_0] = true;
    else
        for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
            need.types[t] = yk_type_get((yk_type)t) && yk_ops_get(need.isa)->matmul[t];
    const bool all = !o->device || !*o->device || strcmp(o->device, "auto") == 0;
    if (!all && strcmp(o->device, "cpu") == 0)
        return measure(out, &need, err);
    uint32_t n, index;
    need.null_options = yk_device_null_options(o->device);
    yk_device_info *list = yk_alloc(YK_MEM_RUNTIME, YK_DEVICE_LIST, sizeof *list);
    if (!list)
        return yk_fail_memory(err, YK_DEVICE_LIST * sizeof *list, "the list of devices");
    yk_status st = yk_device_list(list, YK_DEVICE_LIST, &n, need.null_options, err);
    n = n < YK_DEVICE_LIST ? n : YK_DEVICE_LIST;
    if (st == YK_OK && !all && (st = yk_device_find(list, n, o->device, &index, err)) == YK_OK)
        memcpy(need.devices[need.n_devices++], list[index].name, YK_DEVICE_NAME);
    for (uint32_t i = 0; st == YK_OK && all && i < n; i++)
        if (list[i].usable && !yk_device_is_double(list, n, i) && need.n_devices < YK_MAX_DEVICES)
            memcpy(need.devices[need.n_devices++], list[i].name, YK_DEVICE_NAME);
    yk_free(list);
    return st == YK_OK ? measure(out, &need, err) : st;
}

/* ---- the cache ------------------------------------------------------------------------------------------------------------------------ */

static bool on_devices(uint32_t type)
{
    return yk_pack_has((yk_type)type) && yk_k_matvec_name((yk_type)type, 1);
}

static bool covers(const yk_machine *m, const yk_profile_opts *need)
{
    const yk_ops *ops = yk_ops_get(need->isa);
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
        if (need->types[t] && ops->matmul[t] &&
            (!(m->rates.product[t][0] > 0) || (need->few[t] && !(m->rates.prompt[t][0] > 0 && m->rates.prompt[t][1] > 0)) ||
             (need->down[t] && !(m->rates.down[t][0] > 0)) || (need->narrow[t] && !(m->rates.down[t][2] > 0))))
            return false;
    for (uint32_t i = 0; i < need->n_devices; i++) {
        uint32_t k = 0;
        while (k < m->n_devices && strcmp(m->devices[k].name, need->devices[i]) != 0)
            k++;
        if (k == m->n_devices)
            return false;
        for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++)
            if (need->types[t] && on_devices(t) && !(m->devices[k].rates.product[t][0] > 0))
                return false;
    }
    return true;
}

static void add_known(yk_profile_opts *need, const yk_machine *m)
{
    for (uint32_t t = 0; t < YK_TYPE_LIMIT; t++) {
        need->types[t] = need->types[t] || m->rates.product[t][0] > 0;
        need->few[t] = need->few[t] || m->rates.prompt[t][0] > 0;
        need->down[t] = need->down[t] || m->rates.down[t][0] > 0;
        need->narrow[t] = need->narrow[t] || m->rates.down[t][2] > 0;
    }
    for (uint32_t i = 0; i < m->n_devices; i++) {
        uint32_t k = 0;
        while (k < need->n_devices && strcmp(need->devices[k], m->devices[i].name) != 0)
            k++;
        if (k == need->n_devices && k < YK_MAX_DEVICES)
            memcpy(need->devices[need->n_devices++], m->devices[i].name, YK_DEVICE_NAME);
    }
}

/* A look at whether a measurement of another day still holds; what moved is measured again, for this run only. */
static yk_status look_again(yk_machine *m, const yk_profile_opts *need, yk_error *err)
{
    uint32_t n;
    char text[256];
    YK_TRY(yk_profile_canary(m, need, &n, text, sizeof text, err));
    if (n)
        yk_log(YK_LOG_WARN,
               "the machine is not as it was measured: %s at one token; the plan is made with what is measured now", text);
    return YK_OK;
}

yk_status yk_machine_cached(yk_machine **out, const yk_profile_opts *need, yk_error *err)
{
    char path[MAX_PATH] = "";
    yk_cpu_info cpu;
    yk_error ignored = {0};
    yk_profile_opts all = *need;
    *out = NULL;
    YK_TRY(yk_get_cpu_info(&cpu, err));
    cpu.name[sizeof cpu.name - 1] = 0;
    if (cache_path(path, sizeof path, cpu.name, yk_isa_name(need->isa), need->threads, need->null_options, &ignored) != YK_OK)
        path[0] = 0;
    struct stat file;
    if (path[0] && stat(path, &file) == 0 && !S_ISREG(file.st_mode)) { /* opening a pipe would wait for its other end */
        yk_fail(&ignored, YK_ERR_RUNTIME, "%s is no file", path);
        path[0] = 0;
    }
    yk_machine *known = NULL;
    if (path[0] && yk_machine_load(&known, path, &ignored) == YK_OK) {
        if (covers(known, need)) {
            yk_log(YK_LOG_INFO, "the machine as measured in %s", path);
            const yk_status st = look_again(known, need, err);
            if (st != YK_OK)
                yk_machine_close(&known);
            *out = known;
            return st;
        }
        add_known(&all, known);
        yk_machine_close(&known);
    }
    YK_TRY(measure(out, &all, err));
    if ((*out)->noisy)
        yk_log(YK_LOG_INFO, "the measurement of the machine did not settle (%.200s); `yoke profile` makes another",
               (*out)->noisy_items);
    if (path[0])
        yk_cache_folders(path);
    if (!path[0] || save_to(*out, path, &ignored) != YK_OK)
        yk_log(YK_LOG_INFO, "the measurement of the machine is not kept: %s", ignored.text);
    return YK_OK;
}
