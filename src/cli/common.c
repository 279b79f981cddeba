/* common.c - messages, signals, progress, files and output of the program. */
#include "cli.h"
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static bool progress_shown;

/* ---- messages ---------------------------------------------------------------------------------------------------- */

/* A message is one line whatever names it quotes. */
static void print_line(const char *format, va_list args)
{
    char line[1024];
    vsnprintf(line, sizeof line, format, args);
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127)
            *c = '?';
    yk_cli_progress_clear();
    fflush(yk_cli_out); /* keeps the order on a terminal; a failure is found at the next write */
    fprintf(stderr, "yoke: %s\n", line);
}

int yk_cli_error(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_line(format, args);
    va_end(args);
    return code;
}

void yk_cli_note(const yk_cli_opts *opts, const char *format, ...)
{
    va_list args;
    if (opts->quiet)
        return;
    va_start(args, format);
    print_line(format, args);
    va_end(args);
}

int yk_cli_exit_code(yk_status status)
{
    switch (status) {
    case YK_OK:
        return YK_EXIT_OK;
    case YK_ERR_USAGE:
    case YK_ERR_CONTEXT:
        return YK_EXIT_USAGE;
    case YK_ERR_INPUT:
        return YK_EXIT_INPUT;
    case YK_ERR_MEMORY:
        return YK_EXIT_MEMORY;
    case YK_ERR_RUNTIME:
    case YK_ERR_CANCELLED:
        break;
    }
    return YK_EXIT_RUNTIME;
}

int yk_cli_fail(const yk_error *err)
{
    /* A read from a pipe that the signal broke off is an input error of the library. */
    if ((err->status == YK_ERR_CANCELLED || err->status == YK_ERR_INPUT) && yk_cli_interrupted()) {
        yk_cli_progress_clear();
        return 128 + yk_cli_interrupted();
    }
    return yk_cli_error(yk_cli_exit_code(err->status), "%s", err->text[0] ? err->text : yk_status_name(err->status));
}

int yk_cli_no_memory(size_t bytes, const char *what)
{
    return yk_cli_error(YK_EXIT_MEMORY, "not enough memory: %zu bytes for %s", bytes, what);
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;
static _Atomic(yk_engine *) cancel_target;

static void on_signal(int number)
{
    yk_engine *engine = atomic_load(&cancel_target);
    if (interrupted) {
        signal(number, SIG_DFL);
        raise(number); /* delivered when the handler returns: the user asked twice */
        return;
    }
    interrupted = number;
    if (engine)
        yk_engine_cancel(engine);
}

void yk_cli_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: a read from the terminal returns */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void yk_cli_cancel_target(yk_engine *engine)
{
    atomic_store(&cancel_target, engine);
}

int yk_cli_interrupted(void)
{
    return interrupted;
}

void yk_cli_interrupt_clear(void)
{
    yk_engine *engine = atomic_load(&cancel_target);
    interrupted = 0;
    if (engine)
        yk_engine_cancel_clear(engine);
}

bool yk_cli_wait_input(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGTERM);
    sigprocmask(SIG_BLOCK, &block, &before);
    while (!interrupted && ppoll(&input, 1, NULL, &before) < 0 && errno == EINTR)
        continue;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return !interrupted;
}

/* ---- clock, chance, progress ------------------------------------------------------------------------------------- */

double yk_cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

uint64_t yk_cli_random(void)
{
    uint64_t value;
    if (getrandom(&value, sizeof value, 0) == (ssize_t)sizeof value)
        return value;
    struct timespec now; /* early boot or an old kernel: a seed need not be secret */
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20 ^ (uint64_t)getpid();
}

bool yk_cli_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    static double last;
    const yk_cli_opts *opts = user;
    if (yk_cli_interrupted())
        return false;
    if (opts->quiet || !isatty(STDERR_FILENO))
        return true;
    double now = yk_cli_seconds();
    if (done >= total) {
        yk_cli_progress_clear();
    } else if (now - last >= 0.1) {
        last = now;
        progress_shown = true;
        fprintf(stderr, "\r\033[K%s %.0f %%", what ? what : "", 100.0 * (double)done / (double)total);
    }
    return true;
}

void yk_cli_progress_clear(void)
{
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = false;
}

/* ---- files and output -------------------------------------------------------------------------------------------- */

/* More text than any context takes: /dev/zero and the like end here and not when the memory is full. */
enum { MAX_TEXT_BYTES = 1 << 30 };

static int read_stream(FILE *file, const char *name, char **data, size_t *n_bytes)
{
    size_t capacity = 1 << 16, n = 0;
    char *buf = malloc(capacity);
    while (buf) {
        n += fread(buf + n, 1, capacity - n - 1, file);
        if (n < capacity - 1)
            break;
        if (capacity >= MAX_TEXT_BYTES) {
            free(buf);
            return yk_cli_error(YK_EXIT_INPUT, "%s: a text of more than %d bytes; give a shorter one", name,
                                MAX_TEXT_BYTES - 2);
        }
        capacity *= 2;
        char *more = realloc(buf, capacity);
        if (!more)
            free(buf);
        buf = more;
    }
    if (!buf)
        return yk_cli_no_memory(capacity, name);
    if (ferror(file)) {
        int code =
            yk_cli_interrupted() ? 128 + yk_cli_interrupted() : yk_cli_error(YK_EXIT_INPUT, "%s: %s", name, strerror(errno));
        free(buf);
        return code;
    }
    buf[n] = 0;
    *data = buf;
    *n_bytes = n;
    return YK_EXIT_OK;
}

int yk_cli_read_file(const char *path, char **data, size_t *n_bytes)
{
    *data = NULL;
    *n_bytes = 0;
    if (!strcmp(path, "-"))
        return read_stream(stdin, "stdin", data, n_bytes);
    FILE *file = fopen(path, "rb");
    if (!file)
        return yk_cli_error(YK_EXIT_INPUT, "%s: %s", path, strerror(errno));
    int code = read_stream(file, path, data, n_bytes);
    fclose(file);
    return code;
}

FILE *yk_cli_out;
static int output_errno;     /* of the first write that failed; stdio forgets it */
static bool output_reported; /* one message is enough */

static ssize_t write_output(void *cookie, const char *text, size_t n_bytes)
{
    size_t done = 0;
    (void)cookie;
    while (!output_errno && done < n_bytes) {
        ssize_t n = write(STDOUT_FILENO, text + done, n_bytes - done);
        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR)
            output_errno = errno;
    }
    return output_errno ? 0 : (ssize_t)n_bytes;
}

bool yk_cli_open_output(void)
{
    static const cookie_io_functions_t functions = {.write = write_output};
    yk_cli_out = fopencookie(NULL, "w", functions);
    if (yk_cli_out && isatty(STDOUT_FILENO))
        setvbuf(yk_cli_out, NULL, _IOLBF, 0);
    return yk_cli_out != NULL;
}

/* After a write: true when it succeeded. Else the reader has gone, which is no failure, or the disk is full. */
static bool output_good(int *code)
{
    if (!output_errno)
        return true;
    *code = output_errno == EPIPE ? YK_EXIT_OK : YK_EXIT_RUNTIME;
    if (*code && !output_reported) {
        output_reported = true; /* before the message, which flushes again */
        yk_cli_error(*code, "stdout: %s", strerror(output_errno));
    }
    return false;
}

bool yk_cli_write(const char *text, size_t n_bytes, int *code)
{
    fwrite(text, 1, n_bytes, yk_cli_out);
    return output_good(code);
}

bool yk_cli_flush(int *code)
{
    fflush(yk_cli_out);
    return output_good(code);
}

int yk_cli_finish(int code)
{
    int output_code = YK_EXIT_OK;
    yk_cli_flush(&output_code);
    return code ? code : output_code;
}

/* ---- text -------------------------------------------------------------------------------------------------------- */

const char *yk_cli_printable(const char *text, size_t n_bytes)
{
    static char buf[4096];
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        if (n + 8 > sizeof buf) {
            memcpy(buf + n, "...", 3);
            n += 3;
            break;
        }
        if (c == '\n')
            n += (size_t)sprintf(buf + n, "\\n");
        else if (c < 32 || c == 127)
            n += (size_t)sprintf(buf + n, "\\x%02x", c);
        else
            buf[n++] = (char)c;
    }
    buf[n] = 0;
    return buf;
}

const char *yk_cli_size_text(uint64_t bytes, char *buf)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int unit = 0;
    while (v >= 1024 && unit < 4) {
        v /= 1024;
        unit++;
    }
    snprintf(buf, 32, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
    return buf;
}

int yk_cli_tokens(const yk_model *model, const char *text, size_t n_bytes, uint32_t flags, int32_t **ids, size_t *n_ids)
{
    yk_error err = {0};
    size_t capacity = n_bytes + 16; /* every token but BOS and EOS stands for a byte or more, so this nearly always does */
    *ids = NULL;
    for (int round = 0; round < 2; round++) {
        int32_t *more = capacity <= SIZE_MAX / sizeof **ids ? realloc(*ids, capacity * sizeof **ids) : NULL;
        if (!more) {
            free(*ids);
            *ids = NULL;
            return yk_cli_no_memory(capacity * sizeof **ids, "token ids");
        }
        *ids = more;
        if (yk_tokenize(model, text, n_bytes, flags, *ids, capacity, n_ids, &err)) {
            free(*ids);
            *ids = NULL;
            return yk_cli_fail(&err);
        }
        if (*n_ids <= capacity)
            break;
        capacity = *n_ids;
    }
    return YK_EXIT_OK;
}
