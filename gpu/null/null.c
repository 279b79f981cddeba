/* null.c - the null module: devices from its options, memory, the table.
 *
 * Options: devices separated by ';', each "compute" or "time" followed by settings ",NAME=NUMBER":
 *   d       dilation: real seconds for a modelled one (20)      mem     bytes of device memory (16 GiB)
 *   vram    device memory, bytes/s (300e9)                      flops   operations/s (20e12)
 *   link    copies to the device and back, bytes/s (12e9)       up, down   one direction of it
 *   launch  fixed cost of a launch, s (5e-6)                    copy    fixed cost of a copy, s (10e-6)
 *   signal  until the host sees a signal, s (0)                 page    factor on copies of memory that is not page-locked (1)
 *   host    the CPU's own work beside the device, bytes/s (30e9), and hostfix its fixed cost, s (0): kernel "host" of time devices,
 *           without arguments, takes that for its cost_bytes
 *   A_B     A and B of gpu, up, down, host: the time of A is so many times longer while B works (1); "up_host=1.3"
 *   fail    for tests: the allocation of this number, counted from 1 in all of the module, fails (0: none)
 * Without options there is one device, "compute". Event times of a time device are dilated real times: divide differences by d.
 */
#include "gpu/null/null.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { MAX_DEVICES = 8 };

static yk_null_config configs[MAX_DEVICES];
static uint32_t n_configs;

static uint64_t fail_at; /* setting "fail" */
static _Atomic(uint64_t) n_allocs;

void *yk_null_alloc(size_t bytes)
{
    const uint64_t k = atomic_fetch_add(&n_allocs, 1) + 1;
    return k == fail_at ? NULL : yk_module_host->alloc(bytes);
}

static const char *const lanes[YK_NULL_LANES] = {"gpu", "up", "down", "host"};

/* Setting "A_B"; false when it is none. */
static bool read_slow(yk_null_config *c, const char *name, size_t n, double v)
{
    for (int a = 0; a < YK_NULL_LANES; a++)
        for (int b = 0; b < YK_NULL_LANES; b++) {
            char text[16];
            snprintf(text, sizeof text, "%s_%s", lanes[a], lanes[b]);
            if (a == b || strlen(text) != n || memcmp(text, name, n) != 0 || !(v >= 1 && v <= 1000))
                continue;
            c->slow[a][b] = v;
            return true;
        }
    return false;
}

static yk_status read_setting(yk_null_config *c, const char *name, size_t n, double v)
{
    const struct {
        const char *name;
        double *at[2];
        bool zero_allowed;
    } settings[] = {
        {"d", {&c->dilation}, false},   {"vram", {&c->vram}, false},         {"flops", {&c->flops}, false},
        {"up", {&c->up}, false},        {"link", {&c->up, &c->down}, false}, {"down", {&c->down}, false},
        {"launch", {&c->launch}, true}, {"copy", {&c->copy}, true},          {"signal", {&c->signal}, true},
        {"page", {&c->page}, false},    {"host", {&c->host}, false},         {"hostfix", {&c->host_fixed}, true},
    };
    if (n == 3 && memcmp(name, "mem", 3) == 0 && v >= 1 && v < 0x1p60) {
        c->memory_bytes = (uint64_t)v;
        return YK_OK;
    }
    if (n == 4 && memcmp(name, "fail", 4) == 0 && v >= 0 && v < 0x1p60) {
        fail_at = (uint64_t)v;
        return YK_OK;
    }
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        if (strlen(settings[i].name) != n || memcmp(settings[i].name, name, n) != 0)
            continue;
        if (!(v > 0 || (v == 0 && settings[i].zero_allowed)) || !(v < 1e30))
            break;
        for (int k = 0; k < 2; k++)
            if (settings[i].at[k])
                *settings[i].at[k] = v;
        return YK_OK;
    }
    if (read_slow(c, name, n, v))
        return YK_OK;
    return yk_module_fail(YK_ERR_USAGE, "null device: setting \"%.*s\" is unknown or out of range", (int)n, name);
}

/* One device from p up to end. */
static yk_status read_device(const char *p, const char *end)
{
    if (n_configs == MAX_DEVICES)
        return yk_module_fail(YK_ERR_USAGE, "null device: more than %d devices", MAX_DEVICES);
    yk_null_config *c = &configs[n_configs];
    *c = (yk_null_config){.dilation = 20,
                          .vram = 300e9,
                          .flops = 20e12,
                          .up = 12e9,
                          .down = 12e9,
                          .launch = 5e-6,
                          .copy = 10e-6,
                          .page = 1,
                          .host = 30e9,
                          .memory_bytes = 16ull << 30};
    for (int i = 0; i < YK_NULL_LANES * YK_NULL_LANES; i++)
        c->slow[i / YK_NULL_LANES][i % YK_NULL_LANES] = 1;
    const char *comma = memchr(p, ',', (size_t)(end - p));
    const size_t n = (size_t)((comma ? comma : end) - p);
    c->time = n == 4 && memcmp(p, "time", 4) == 0;
    if (!c->time && !(n == 7 && memcmp(p, "compute", 7) == 0))
        return yk_module_fail(YK_ERR_USAGE, "null device: \"%.*s\" is neither compute nor time", (int)n, p);
    while (comma) {
        const char *name = comma + 1, *next = memchr(name, ',', (size_t)(end - name)), *stop = next ? next : end;
        const char *eq = memchr(name, '=', (size_t)(stop - name));
        char *parsed;
        const double v = eq ? strtod(eq + 1, &parsed) : 0;
        if (!eq || parsed != stop)
            return yk_module_fail(YK_ERR_USAGE, "null device: \"%.*s\" is not NAME=NUMBER", (int)(stop - name), name);
        const yk_status st = read_setting(c, name, (size_t)(eq - name), v);
        if (st != YK_OK)
            return st;
        comma = next;
    }
    if (!c->time)
        c->dilation = 1;
    n_configs++;
    return YK_OK;
}

static uint32_t null_count(void)
{
    return n_configs;
}

static yk_status null_info(uint32_t index, yk_gpu_info *out)
{
    if (index >= n_configs)
        return yk_module_fail(YK_ERR_USAGE, "null device %u does not exist, there are %u", index, n_configs);
    const yk_null_config *c = &configs[index];
    *out = (yk_gpu_info){.memory_bytes = c->memory_bytes,
                         .memory_free_bytes = c->memory_bytes,
                         .max_alloc_bytes = c->memory_bytes,
                         .compute_units = 1,
                         .lanes = 1,
                         .max_group = YK_KERNEL_GROUP,
                         .local_bytes = 32768,
                         .same_silicon = true};
    if (c->time)
        snprintf(out->name, sizeof out->name, "null time (d=%g, vram %g, flops %g, link %g/%g)", c->dilation, c->vram, c->flops,
                 c->up, c->down);
    else
        snprintf(out->name, sizeof out->name, "null compute");
    snprintf(out->driver, sizeof out->driver, "yoke");
    return YK_OK;
}

static yk_status null_open(yk_gpu **out, uint32_t index, uint64_t budget_bytes)
{
    *out = NULL;
    if (index >= n_configs)
        return yk_module_fail(YK_ERR_USAGE, "null device %u does not exist, there are %u", index, n_configs);
    yk_gpu *g = yk_null_alloc(sizeof *g);
    struct yk_gpu_kernel *k = yk_null_alloc((yk_null_n_kernels() + 1) * sizeof *k);
    if (!g || !k) {
        yk_module_host->free(g);
        yk_module_host->free(k);
        return yk_module_out_of_memory(sizeof *g, "a device");
    }
    const yk_null_config *c = &configs[index];
    *g = (yk_gpu){
        .config = c, .budget = {.limit = budget_bytes < c->memory_bytes ? budget_bytes : c->memory_bytes}, .kernels = k};
    for (uint32_t i = 0; i <= yk_null_n_kernels(); i++)
        k[i].index = i;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, &attr);
    pthread_condattr_destroy(&attr);
    *out = g;
    return YK_OK;
}

static void free_data(const yk_gpu *g, uint8_t *data, uint64_t bytes)
{
    if (g->config->time)
        munmap(data, bytes);
    else
        yk_module_host->free(data);
}

static void null_close(yk_gpu *g)
{
    if (!g)
        return;
    for (yk_gpu_stream *s = g->streams; s; s = s->next) { /* all at once: one may wait for another */
        pthread_mutex_lock(&g->lock);
        s->quit = true;
        pthread_cond_broadcast(&g->changed);
        pthread_mutex_unlock(&g->lock);
    }
    while (g->streams)
        yk_null_stream_close(g->streams);
    while (g->events) {
        yk_gpu_event *e = g->events;
        g->events = e->next;
        yk_module_host->free(e);
    }
    while (g->mems) {
        yk_null_mem *m = g->mems;
        g->mems = m->next;
        free_data(g, m->data, m->bytes);
        yk_module_host->free(m);
    }
    while (g->pinned) {
        yk_null_pinned *p = g->pinned;
        g->pinned = p->next;
        if (!p->registered)
            yk_module_host->free(p->data);
        yk_module_host->free(p);
    }
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    yk_module_host->free(g->kernels);
    yk_module_host->free(g);
}

static void null_module_close(void)
{
    n_configs = 0;
}

static yk_status null_mem_alloc(yk_gpu *g, yk_mem_class cls, uint64_t bytes, yk_gpu_mem *out)
{
    *out = (yk_gpu_mem){0};
    if (!bytes)
        return yk_module_fail(YK_ERR_USAGE, "device memory of 0 bytes");
    const yk_status st = yk_module_budget_take(&g->budget, cls, bytes);
    if (st != YK_OK)
        return st;
    yk_null_mem *m = yk_null_alloc(sizeof *m);
    uint8_t *data = NULL;
    if (m && g->config->time) { /* never touched */
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        data = p == MAP_FAILED ? NULL : p;
    } else if (m) {
        data = yk_null_alloc(bytes);
    }
    if (!data) {
        yk_module_host->free(m);
        yk_module_budget_give(&g->budget, cls, bytes);
        return yk_module_out_of_memory(bytes, "device memory");
    }
    *m = (yk_null_mem){.gpu = g, .data = data, .bytes = bytes, .cls = cls, .next = g->mems};
    g->mems = m;
    *out = (yk_gpu_mem){.handle = m, .bytes = bytes};
    return YK_OK;
}

static void null_mem_free(yk_gpu *g, yk_mem_class cls, yk_gpu_mem *mem)
{
    (void)cls; /* the reservation knows its own */
    for (yk_null_mem **p = &g->mems; *p; p = &(*p)->next) {
        yk_null_mem *m = *p;
        if (m != mem->handle)
            continue;
        *p = m->next;
        yk_module_budget_give(&g->budget, m->cls, m->bytes);
        free_data(g, m->data, m->bytes);
        yk_module_host->free(m);
        break;
    }
    *mem = (yk_gpu_mem){0};
}

static void null_mem_used(const yk_gpu *g, uint64_t used[YK_MEM_N_CLASSES], uint64_t *budget)
{
    memcpy(used, g->budget.used, sizeof g->budget.used);
    *budget = g->budget.limit;
}

static yk_status null_host_alloc(yk_gpu *g, uint64_t bytes, void **out)
{
    yk_null_pinned *p = yk_null_alloc(sizeof *p);
    *out = p ? yk_null_alloc(bytes) : NULL;
    if (!*out) {
        yk_module_host->free(p);
        return yk_module_out_of_memory(bytes, "pinned memory");
    }
    *p = (yk_null_pinned){.next = g->pinned, .data = *out, .bytes = bytes};
    g->pinned = p;
    return YK_OK;
}

static void forget_pinned(yk_gpu *g, const void *data, bool registered)
{
    for (yk_null_pinned **at = &g->pinned; *at; at = &(*at)->next) {
        yk_null_pinned *p = *at;
        if (p->data != data || p->registered != registered)
            continue;
        *at = p->next;
        if (!registered)
            yk_module_host->free(p->data);
        yk_module_host->free(p);
        return;
    }
}

static void null_host_free(yk_gpu *g, void *data)
{
    forget_pinned(g, data, false);
}

/* The device reads host memory where it lies: nothing has to be locked, but settings may tell locked memory from other. */
static yk_status null_host_register(yk_gpu *g, void *p, uint64_t bytes)
{
    if (!p || !bytes)
        return yk_module_fail(YK_ERR_USAGE, "no host memory to lock");
    yk_null_pinned *r = yk_null_alloc(sizeof *r);
    if (!r)
        return yk_module_out_of_memory(sizeof *r, "locked memory");
    *r = (yk_null_pinned){.next = g->pinned, .data = p, .bytes = bytes, .registered = true};
    g->pinned = r;
    return YK_OK;
}

static void null_host_unregister(yk_gpu *g, void *p)
{
    forget_pinned(g, p, true);
}

static yk_status null_kernel_get(yk_gpu *g, const char *name, yk_gpu_kernel **out)
{
    const uint32_t i = g->config->time && strcmp(name, "host") == 0 ? yk_null_n_kernels() : yk_null_kernel_find(name);
    *out = i == UINT32_MAX ? NULL : &g->kernels[i];
    return *out ? YK_OK : yk_module_fail(YK_ERR_USAGE, "there is no kernel \"%s\"", name);
}

static const yk_device_table null_table = {
    .abi = YK_DEVICE_ABI,
    .size = sizeof(yk_device_table),
    .backend = "null",
    .last_error = yk_module_last_error,
    .count = null_count,
    .info = null_info,
    .open = null_open,
    .close = null_close,
    .module_close = null_module_close,
    .mem_alloc = null_mem_alloc,
    .mem_free = null_mem_free,
    .mem_used = null_mem_used,
    .host_alloc = null_host_alloc,
    .host_free = null_host_free,
    .host_register = null_host_register,
    .host_unregister = null_host_unregister,
    .stream_open = yk_null_stream_open,
    .stream_close = yk_null_stream_close,
    .stream_flush = yk_null_stream_flush,
    .stream_sync = yk_null_stream_sync,
    .event_open = yk_null_event_open,
    .event_close = yk_null_event_close,
    .event_record = yk_null_event_record,
    .event_wait = yk_null_event_wait,
    .event_time = yk_null_event_time,
    .copy_to_device = yk_null_copy_to_device,
    .copy_to_host = yk_null_copy_to_host,
    .copy_device = yk_null_copy_device,
    .fill = yk_null_fill,
    .kernel_get = null_kernel_get,
    .launch = yk_null_launch,
    .box_signal = yk_null_box_signal,
    .box_wait = yk_null_box_wait,
    .box_post = yk_null_box_post,
    .box_value = yk_null_box_value,
};

yk_status yk_module_open(uint32_t abi, const yk_host_calls *host, yk_device_table *out)
{
    const yk_status fits = yk_module_attach(abi, host, &null_table, out);
    if (fits != YK_OK)
        return fits;
    n_configs = 0;
    fail_at = 0;
    n_allocs = 0;
    for (const char *p = host->options ? host->options : "compute"; p;) {
        const char *end = strchr(p, ';');
        const yk_status st = read_device(p, end ? end : p + strlen(p));
        if (st != YK_OK)
            return st;
        p = end ? end + 1 : NULL;
    }
    return YK_OK;
}
