/* parse.c - reads the command line by the table in flags.c.
 *
 * Not getopt_long_only: it would take "-ub" for "-u -b", accept abbreviations (which break scripts as soon as a flag is added)
 * and print its own messages. Names are matched whole; "--name value" and "--name=value" are the same. */
#include "cli.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

uint32_t yk_cli_distance(const char *a, const char *b)
{
    enum { MAX = 32 };
    uint32_t row[3][MAX + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > MAX || m > MAX)
        return MAX;
    for (size_t j = 0; j <= m; j++)
        row[0][j] = (uint32_t)j;
    for (size_t i = 1; i <= n; i++) {
        uint32_t *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        now[0] = (uint32_t)i;
        for (size_t j = 1; j <= m; j++) {
            uint32_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            best = last[j] + 1 < best ? last[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return row[n % 3][m];
}

/* The next name of a list like "-t, --threads" behind *at; false at the end. */
static bool next_name(const char **at, char *name, size_t capacity)
{
    if (!**at)
        return false;
    size_t n = strcspn(*at, ",");
    size_t copy = n < capacity ? n : capacity - 1;
    memcpy(name, *at, copy);
    name[copy] = 0;
    *at += n;
    *at += strspn(*at, ", ");
    return true;
}

static const yk_flag *find_flag(unsigned command, const char *text, size_t n)
{
    char name[64];
    const yk_flag *flag;
    for (uint32_t i = 0; (flag = yk_cli_flag(command, i)); i++)
        for (const char *at = flag->names; next_name(&at, name, sizeof name);)
            if (strlen(name) == n && !memcmp(name, text, n))
                return flag;
    return NULL;
}

static int unknown_flag(const yk_cli_command *command, const char *text)
{
    char name[64], best_name[64] = "";
    uint32_t best = 3;
    const yk_flag *flag;
    char given[64];
    snprintf(given, sizeof given, "%.*s", (int)strcspn(text, "="), text);
    for (uint32_t i = 0; (flag = yk_cli_flag(command->bit, i)); i++) {
        for (const char *at = flag->names; next_name(&at, name, sizeof name);) {
            uint32_t d = yk_cli_distance(given, name);
            if (d < best && d < strlen(name)) {
                best = d;
                snprintf(best_name, sizeof best_name, "%s", name);
            }
        }
    }
    if (best_name[0])
        return yk_cli_error(YK_EXIT_USAGE, "unknown flag %s: did you mean %s? See yoke %s --help", text, best_name,
                            command->name);
    return yk_cli_error(YK_EXIT_USAGE, "unknown flag %s: see yoke %s --help", text, command->name);
}

static bool parse_int(const char *text, double min, double max, int64_t *value)
{
    char *end;
    if (!(text[0] == '-' || (text[0] >= '0' && text[0] <= '9')))
        return false;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end || !((double)v >= min && (double)v <= max))
        return false;
    *value = v;
    return true;
}

static bool parse_real(const yk_flag *flag, const char *text, double *value)
{
    char *end;
    if (!text[0] || strspn(text, "0123456789+-.eE") != strlen(text)) /* no hexadecimal, no nan, no infinity */
        return false;
    double v = strtod(text, &end);
    if (*end || !isfinite(v) || !(v <= flag->max) || !(flag->open_min ? v > flag->min : v >= flag->min))
        return false;
    *value = v;
    return true;
}

static bool parse_size(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *end;
    if (text[0] < '0' || text[0] > '9' || strspn(text, "0123456789.") == 0)
        return false;
    size_t n = strspn(text, "0123456789.");
    double v = strtod(text, &end);
    if (end != text + n)
        return false;
    if (*end) {
        char unit = *end >= 'a' ? (char)(*end - 32) : *end;
        const char *at = strchr(units, unit);
        if (!at)
            return false;
        v *= (double)(1ull << (10 * (at - units + 1)));
        end++;
        if (*end && strcmp(end, "B") && strcmp(end, "iB") && strcmp(end, "b"))
            return false;
    }
    if (!(v >= 1 && v <= 1152921504606846976.0))
        return false;
    *bytes = (uint64_t)v;
    return true;
}

static bool parse_list(const yk_flag *flag, const char *text, yk_cli_list *list)
{
    char item[24];
    uint32_t before = list->given ? list->n : 0, n = before;
    for (;;) {
        size_t len = strcspn(text, ",");
        int64_t value;
        if (!len || len >= sizeof item || n == YK_CLI_LIST_MAX)
            return false;
        memcpy(item, text, len);
        item[len] = 0;
        if (!parse_int(item, flag->min, flag->max, &value))
            return false;
        list->value[n++] = (uint32_t)value;
        if (!text[len])
            break;
        text += len + 1;
    }
    if (flag->kind == YK_FLAG_PAIRS && n - before != 2)
        return false;
    list->n = n;
    list->given = true;
    return true;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (;;) {
        size_t len = strcspn(choices, "|");
        if (len == n && !memcmp(choices, text, n))
            return true;
        if (!choices[len])
            return false;
        choices += len + 1;
    }
}

/* What a flag accepts, in words. */
static void allowed(const yk_flag *flag, char *buf, size_t capacity)
{
    switch (flag->kind) {
    case YK_FLAG_INT:
        snprintf(buf, capacity, "a whole number from %.0f to %.0f", flag->min, flag->max);
        break;
    case YK_FLAG_REAL:
        snprintf(buf, capacity, flag->open_min ? "a number above %g, at most %g" : "a number from %g to %g", flag->min,
                 flag->max);
        break;
    case YK_FLAG_SIZE:
        snprintf(buf, capacity, "a size from 1 byte to 2^60, for example 512M or 8G");
        break;
    case YK_FLAG_LIST:
        snprintf(buf, capacity, "at most %d whole numbers from %.0f to %.0f, separated by commas", YK_CLI_LIST_MAX, flag->min,
                 flag->max);
        break;
    case YK_FLAG_PAIRS:
        snprintf(buf, capacity, "two whole numbers from %.0f to %.0f, separated by a comma", flag->min, flag->max);
        break;
    case YK_FLAG_CHOICE:
        snprintf(buf, capacity, "one of %s", flag->choices);
        break;
    default:
        snprintf(buf, capacity, "a text");
        break;
    }
}

static bool set_value(const yk_flag *flag, yk_cli_opts *opts, const char *text)
{
    void *at = (char *)opts + flag->offset;
    switch (flag->kind) {
    case YK_FLAG_ON:
    case YK_FLAG_OFF:
        *(bool *)at = flag->kind == YK_FLAG_ON;
        return true;
    case YK_FLAG_COUNT:
        ++*(uint32_t *)at;
        return true;
    case YK_FLAG_TEXT:
        *(const char **)at = text;
        return true;
    case YK_FLAG_CHOICE:
        *(const char **)at = text;
        return is_choice(flag->choices, text);
    case YK_FLAG_INT:
        return parse_int(text, flag->min, flag->max, at);
    case YK_FLAG_REAL:
        return parse_real(flag, text, at);
    case YK_FLAG_SIZE:
        return parse_size(text, at);
    case YK_FLAG_LIST:
    case YK_FLAG_PAIRS:
        return parse_list(flag, text, at);
    }
    return false;
}

/* One flag at argv[*i]; *i moves to its value when that is the next argument. */
static int parse_flag(yk_cli_opts *opts, const yk_cli_command *command, int argc, char **argv, int *i)
{
    const char *text = argv[*i], *value = NULL;
    size_t n = strlen(text);
    const yk_flag *flag = find_flag(command->bit, text, n);
    if (!flag && !strncmp(text, "--", 2) && (value = strchr(text, '='))) {
        n = (size_t)(value++ - text);
        flag = find_flag(command->bit, text, n);
    }
    if (!flag)
        return unknown_flag(command, text);
    if (flag->arg && !value) {
        if (*i + 1 >= argc)
            return yk_cli_error(YK_EXIT_USAGE, "%s needs a value (%s): see yoke %s --help", text, flag->arg, command->name);
        value = argv[++*i];
    } else if (!flag->arg && value) {
        return yk_cli_error(YK_EXIT_USAGE, "%.*s takes no value, but %s was given", (int)n, text, value);
    }
    if (!set_value(flag, opts, value)) {
        char range[160];
        allowed(flag, range, sizeof range);
        return yk_cli_error(YK_EXIT_USAGE, "%.*s: '%s' is not allowed; give %s", (int)n, text, value, range);
    }
    return YK_EXIT_OK;
}

/* Files that are written whole and then get their name, which stdout cannot take. */
static int check_outputs(const yk_cli_opts *opts, const yk_cli_command *command)
{
    const struct {
        const char *flag, *path;
    } files[] = {
        {"--trace", opts->trace}, {"--logits", opts->logits}, {"-o", command->bit == YK_CMD_SYNTH ? opts->output : NULL}};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        if (files[i].path && !strcmp(files[i].path, "-"))
            return yk_cli_error(YK_EXIT_USAGE, "%s - does not write to stdout: name a file, %s FILE (./- for one of that name)",
                                files[i].flag, files[i].flag);
    return YK_EXIT_OK;
}

int yk_cli_parse(yk_cli_opts *opts, const yk_cli_command *command, int argc, char **argv)
{
    bool flags = true;
    yk_cli_opts_init(opts, command->bit);
    for (int i = 0; i < argc; i++) {
        if (flags && !strcmp(argv[i], "--")) {
            flags = false;
        } else if (flags && argv[i][0] == '-' && argv[i][1]) {
            int code = parse_flag(opts, command, argc, argv, &i);
            if (code)
                return code;
            if (opts->help)
                return YK_EXIT_OK;
        } else if (opts->n_positional == command->n_positional) {
            return yk_cli_error(YK_EXIT_USAGE, "argument '%s' is one too many: see yoke %s --help", argv[i], command->name);
        } else {
            opts->positional[opts->n_positional++] = argv[i];
        }
    }
    return check_outputs(opts, command);
}

void yk_cli_print_flags(FILE *out, unsigned command)
{
    const yk_flag *flag;
    char left[80];
    for (uint32_t i = 0; (flag = yk_cli_flag(command, i)); i++) {
        bool only_long = !strncmp(flag->names, "--", 2);
        snprintf(left, sizeof left, "  %s%s%s%s", only_long ? "    " : "", flag->names, flag->arg ? " " : "",
                 flag->arg ? flag->arg : "");
        if (strlen(left) > 32)
            fprintf(out, "%s\n%34s%s\n", left, "", flag->help);
        else
            fprintf(out, "%-34s%s\n", left, flag->help);
    }
}
