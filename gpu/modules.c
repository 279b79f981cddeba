#include "gpu/modules.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/env.h"
#include "src/base/log.h"

static void *host_alloc(size_t bytes)
{
    return yk_alloc(YK_MEM_RUNTIME, bytes, 1);
}

static void host_log(yk_log_level level, const char *line)
{
    yk_log(level, "%s", line);
}

__attribute__((format(printf, 2, 3))) static void say_why(yk_backend *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(b->why, sizeof b->why, fmt, ap);
    va_end(ap);
    for (char *p = b->why; *p; p++) /* dlerror and drivers may say more than a line */
        if ((unsigned char)*p < 0x20)
            *p = ' ';
}

/* b->path is "FOLDER[n_folder]/MORE/yoke-NAME.so", if there is such a file. */
static bool try_folder(yk_backend *b, const char *folder, size_t n_folder, const char *more)
{
    const int n = snprintf(b->path, sizeof b->path, "%.*s%s/yoke-%s.so", (int)n_folder, folder, more, b->name);
    if (n > 0 && (size_t)n < sizeof b->path && access(b->path, F_OK) == 0)
        return true;
    b->path[0] = 0;
    return false;
}

/* The folder this code was loaded from: of libyoke.so, or of a program it is linked into. */
static bool own_folder(char *buf, size_t size)
{
    static const char anchor;
    Dl_info info;
    if (!dladdr(&anchor, &info) || !info.dli_fname)
        return false;
    if (strchr(info.dli_fname, '/')) {
        const int n = snprintf(buf, size, "%s", info.dli_fname);
        if (n < 0 || (size_t)n >= size)
            return false;
    } else { /* a program found through PATH */
        const ssize_t n = readlink("/proc/self/exe", buf, size - 1);
        if (n < 0)
            return false;
        buf[n] = 0;
    }
    char *slash = strrchr(buf, '/');
    if (!slash)
        return false;
    *slash = 0;
    return true;
}

static bool find_module(yk_backend *b)
{
    for (const char *p = yk_env_module_path(); p && *p;) {
        const char *colon = strchr(p, ':');
        const size_t n = colon ? (size_t)(colon - p) : strlen(p);
        if (n && try_folder(b, p, n, ""))
            return true;
        p = colon ? colon + 1 : NULL;
    }
    static const char *const near[] = {"/gpu", "/../gpu", "/../../gpu", "/yoke"};
    char own[4096];
    if (own_folder(own, sizeof own))
        for (size_t i = 0; i < sizeof near / sizeof *near; i++)
            if (try_folder(b, own, strlen(own), near[i]))
                return true;
    return try_folder(b, YK_MODULE_DIR, strlen(YK_MODULE_DIR), "");
}

/* Whether all that the ELF headers name lies inside the file: the loader maps what is beyond the end of a file that was cut
 * short, and dies at the first touch of it. What is no ELF file of this machine is left to dlopen, which says so. */
static bool is_whole(int fd, uint64_t size)
{
    Elf64_Ehdr h;
    Elf64_Phdr p;
    if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0 ||
        h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_phentsize != sizeof p)
        return true;
    for (uint32_t i = 0; i < h.e_phnum; i++) {
        const uint64_t at = h.e_phoff + (uint64_t)i * sizeof p;
        if (h.e_phoff > size || at + sizeof p > size || pread(fd, &p, sizeof p, (off_t)at) != (ssize_t)sizeof p)
            return false;
        if (p.p_type == PT_LOAD && (p.p_offset > size || p.p_filesz > size - p.p_offset))
            return false;
    }
    return true;
}

/* A module is a regular file (opening a pipe would wait for its writer), and a whole one. */
static bool check_file(yk_backend *b)
{
    struct stat st;
    const int fd = open(b->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        say_why(b, "%s %s", b->path, fd < 0 ? "cannot be opened" : "is no file");
    else if (!is_whole(fd, (uint64_t)st.st_size))
        say_why(b, "%s is cut short: install it again", b->path);
    if (fd >= 0)
        close(fd);
    return !b->why[0];
}

static void load(yk_backend *b)
{
    if (!find_module(b)) {
        say_why(b, "yoke-%s.so was not found: not built, not installed, or not in YOKE_MODULE_PATH", b->name);
        return;
    }
    if (!check_file(b))
        return;
    /* Drivers leave threads behind that must not lose their code: a module stays mapped. */
    b->dl = dlopen(b->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!b->dl) {
        say_why(b, "%s", dlerror());
        return;
    }
    yk_module_open_fn open_fn;
    *(void **)&open_fn = dlsym(b->dl, "yk_module_open");
    if (!open_fn) {
        say_why(b, "%s is no yoke module: it has no yk_module_open", b->path);
        return;
    }
    yk_device_table *t = &b->table;
    const yk_status st = open_fn(YK_DEVICE_ABI, &b->host, t);
    if (t->abi != YK_DEVICE_ABI || t->size != sizeof *t) {
        say_why(
            b,
            "%s was built for device ABI %u with a table of %u bytes, this yoke has ABI %u with %zu: install matching versions",
            b->path, t->abi, t->size, YK_DEVICE_ABI, sizeof *t);
    } else if (st != YK_OK) {
        say_why(b, "%s", t->last_error ? t->last_error() : yk_status_name(st));
    } else if (!(b->n_devices = t->count())) {
        const char *line = t->last_error();
        say_why(b, "%s", line && *line ? line : "no device");
        t->module_close();
    } else {
        b->usable = true;
    }
}

yk_status yk_modules_load(yk_modules **out, const yk_modules_opts *opts, yk_error *err)
{
    static const char *const names[YK_N_BACKENDS] = {"cuda", "opencl", "null"};
    const char *cache_dir = opts ? opts->cache_dir : NULL, *null_options = opts ? opts->null_options : NULL;
    *out = NULL;
    yk_modules *m = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *m);
    if (!m)
        return yk_fail_memory(err, sizeof *m, "the GPU backends");
    m->cache_dir = cache_dir ? yk_strndup(YK_MEM_RUNTIME, cache_dir, strlen(cache_dir)) : NULL;
    m->null_options = null_options ? yk_strndup(YK_MEM_RUNTIME, null_options, strlen(null_options)) : NULL;
    if ((cache_dir && !m->cache_dir) || (null_options && !m->null_options)) {
        yk_modules_close(&m);
        return yk_fail_memory(err, 4096, "the GPU backends");
    }
    for (uint32_t i = 0; i < YK_N_BACKENDS; i++) {
        yk_backend *b = &m->backends[i];
        const bool is_null = strcmp(names[i], "null") == 0, is_cuda = strcmp(names[i], "cuda") == 0;
        const char *hold = is_cuda ? yk_env_cuda_hold() : NULL;
        const bool holds = hold && *hold && strcmp(hold, "0") != 0;
        const char *mma = is_cuda ? yk_env_cuda_mma() : NULL;
        const bool plain = mma && strcmp(mma, "0") == 0;
        b->name = names[i];
        b->host = (yk_host_calls){.abi = YK_DEVICE_ABI,
                                  .size = sizeof b->host,
                                  .alloc = host_alloc,
                                  .free = yk_free,
                                  .log = host_log,
                                  .cache_dir = m->cache_dir,
                                  .options = is_null          ? m->null_options
                                             : holds && plain ? "hold,nomma"
                                             : holds          ? "hold"
                                             : plain          ? "nomma"
                                                              : NULL};
        if (is_null && !null_options)
            say_why(b, "a device without hardware, for tests; used when --device null names it");
        else
            load(b);
        yk_log(YK_LOG_DEBUG, "backend %s: %s", b->name, b->usable ? b->path : b->why);
    }
    *out = m;
    return YK_OK;
}

void yk_modules_close(yk_modules **modules)
{
    yk_modules *m = *modules;
    *modules = NULL;
    if (!m)
        return;
    for (uint32_t i = 0; i < YK_N_BACKENDS; i++) {
        yk_backend *b = &m->backends[i];
        if (b->usable)
            b->table.module_close();
        if (b->dl)
            dlclose(b->dl);
    }
    yk_free(m->cache_dir);
    yk_free(m->null_options);
    yk_free(m);
}

const yk_backend *yk_modules_find(const yk_modules *modules, const char *name)
{
    for (uint32_t i = 0; i < YK_N_BACKENDS; i++)
        if (modules->backends[i].usable && strcmp(modules->backends[i].name, name) == 0)
            return &modules->backends[i];
    return NULL;
}
