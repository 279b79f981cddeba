/* cli.h - what the files of the program share. The program uses the library through yoke/yoke.h only. */
#ifndef YK_CLI_CLI_H
#define YK_CLI_CLI_H

#include <yoke/yoke.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Exit codes are part of the interface; see yk_cli_exit_code. */
enum { YK_EXIT_OK = 0, YK_EXIT_RUNTIME = 1, YK_EXIT_USAGE = 2, YK_EXIT_INPUT = 3, YK_EXIT_MEMORY = 4 };

/* One bit per subcommand; a flag lists the ones that take it. */
enum {
    YK_CMD_RUN = 1,
    YK_CMD_CHAT = 2,
    YK_CMD_INSPECT = 4,
    YK_CMD_TOKENIZE = 8,
    YK_CMD_PERPLEXITY = 16,
    YK_CMD_BENCH = 32,
    YK_CMD_DEVICES = 64,
    YK_CMD_SYNTH = 128,
    YK_CMD_PROFILE = 256,
    YK_CMD_PLAN = 512
};

#define YK_CLI_LIST_MAX 64

/* A comma-separated list of numbers; a flag given twice adds to it. */
typedef struct yk_cli_list {
    uint32_t value[YK_CLI_LIST_MAX];
    uint32_t n;
    bool given; /* false: the values are the defaults, which the first flag replaces */
} yk_cli_list;

/* The values of all flags of all subcommands; text points into argv. */
typedef struct yk_cli_opts {
    const char *positional[2];
    uint32_t n_positional;
    /* model */
    const char *model;
    bool check_tensors, vocab_only;
    /* machine */
    int64_t threads, context, batch, ubatch, gpu_layers, cpu_moe;
    const char *overrides;
    bool kv_on_host;
    const char *device, *isa, *cache_k, *cache_v, *policy;
    uint64_t vram_budget;
    bool auto_partition, explain, quick, no_repack;
    const char *plan, *machine; /* files */
    const char *pack_cache;     /* folder */
    /* text in */
    const char *prompt, *prompt_file, *ids, *system;
    bool escape, no_special, no_parse_special;
    /* generation */
    int64_t n_predict;
    bool ignore_eos;
    int64_t seed; /* -1: random */
    double temperature, top_p, min_p, typical, repeat_penalty, frequency_penalty, presence_penalty;
    int64_t top_k, repeat_last_n;
    /* out */
    bool print_ids, full, quiet, help, stats;
    const char *logits, *trace, *output;
    uint32_t verbose;
    /* perplexity, bench, synth */
    int64_t chunks, repetitions;
    yk_cli_list bench_prompt, bench_gen, bench_pair, bench_depth, bench_threads;
    const char *shape, *type;
    int64_t layers;
    bool list;
} yk_cli_opts;

typedef struct yk_cli_command {
    const char *name;
    unsigned bit;
    const char *usage;   /* what follows "yoke NAME" */
    const char *summary; /* one line for `yoke --help` */
    const char *text;    /* the rest of `yoke NAME --help`, before the flags */
    uint32_t n_positional;
    int (*run)(yk_cli_opts *opts); /* returns the exit code */
} yk_cli_command;

/* ---- main.c: subcommands, one file each ---- */
int yk_cli_run(yk_cli_opts *opts);
int yk_cli_chat(yk_cli_opts *opts);
int yk_cli_inspect(yk_cli_opts *opts);
int yk_cli_tokenize(yk_cli_opts *opts);
int yk_cli_perplexity(yk_cli_opts *opts);
int yk_cli_bench(yk_cli_opts *opts);
int yk_cli_devices(yk_cli_opts *opts);
int yk_cli_synth(yk_cli_opts *opts);
int yk_cli_profile(yk_cli_opts *opts);
int yk_cli_plan(yk_cli_opts *opts);

/* ---- flags.c, parse.c ---- */
typedef enum yk_flag_kind {
    YK_FLAG_ON,     /* bool: true */
    YK_FLAG_OFF,    /* bool: false */
    YK_FLAG_COUNT,  /* uint32_t: one more each time */
    YK_FLAG_TEXT,   /* const char * */
    YK_FLAG_CHOICE, /* const char *: one of `choices`, separated by '|' */
    YK_FLAG_INT,    /* int64_t in min..max */
    YK_FLAG_REAL,   /* double in min..max; without min itself when open_min */
    YK_FLAG_SIZE,   /* uint64_t bytes: 512M, 8G (binary), at least 1 */
    YK_FLAG_LIST,   /* yk_cli_list, each value in min..max */
    YK_FLAG_PAIRS   /* yk_cli_list of pairs "A,B", each value in min..max */
} yk_flag_kind;

typedef struct yk_flag {
    unsigned commands;
    const char *names; /* separated by ", ": "-t, --threads" */
    const char *arg;   /* name of the value in the help, NULL when there is none */
    yk_flag_kind kind;
    size_t offset; /* of the value in yk_cli_opts */
    double min, max;
    bool open_min;
    const char *choices;
    const char *help;
} yk_flag;

/* Flags that a command takes, in the order of the help: the n-th of the table that lists `command`, NULL behind the last. */
const yk_flag *yk_cli_flag(unsigned command, uint32_t index);

void yk_cli_opts_init(yk_cli_opts *opts, unsigned command);
/* Read argv[0..argc) (behind the subcommand). Exit code 0, or 2 after a message. */
int yk_cli_parse(yk_cli_opts *opts, const yk_cli_command *command, int argc, char **argv);
void yk_cli_print_flags(FILE *out, unsigned command);
/* Edit distance with exchanges of neighbours; for suggestions. */
uint32_t yk_cli_distance(const char *a, const char *b);

/* ---- common.c ---- */
/* Print "yoke: ..." on stderr, always one line, and return `code`. */
int yk_cli_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same without an exit code, for remarks that end nothing; silent when quiet. */
void yk_cli_note(const yk_cli_opts *opts, const char *format, ...) __attribute__((format(printf, 2, 3)));
int yk_cli_exit_code(yk_status status);
/* Report a library failure; an interrupt by the user gives 128 + signal without a message. */
int yk_cli_fail(const yk_error *err);
int yk_cli_no_memory(size_t bytes, const char *what);

/* Ctrl-C and SIGTERM set a flag and cancel the engine that yk_cli_cancel_target names (NULL: none). A second Ctrl-C before the
 * flag is cleared ends the program at once. */
void yk_cli_catch_signals(void);
void yk_cli_cancel_target(yk_engine *engine);
int yk_cli_interrupted(void); /* signal number or 0 */
void yk_cli_interrupt_clear(void);
/* Wait until stdin, a terminal, can be read; false after an interrupt, also one that came just before the wait. */
bool yk_cli_wait_input(void);

double yk_cli_seconds(void);
/* 64 random bits from the system. */
uint64_t yk_cli_random(void);

/* Progress on stderr when that is a terminal and not quiet; user is the yk_cli_opts. Returns false after an interrupt. */
bool yk_cli_progress(void *user, const char *what, uint64_t done, uint64_t total);
void yk_cli_progress_clear(void);

/* Whole contents of a file, or of stdin for "-". Exit code; *data (NUL-terminated) is freed by the caller. */
int yk_cli_read_file(const char *path, char **data, size_t *n_bytes);

/* All output to stdout goes through this stream, which remembers why a write failed. */
extern FILE *yk_cli_out;
bool yk_cli_open_output(void); /* false: memory is short */

/* Write text to stdout. Returns false when it cannot take more: *code is 0 when the reader has gone, 1 (after a message) for
 * other failures. Nothing is flushed; yk_cli_flush does that with the same result. */
bool yk_cli_write(const char *text, size_t n_bytes, int *code);
bool yk_cli_flush(int *code);
/* Flush at the end of a command; returns the exit code to use. */
int yk_cli_finish(int code);

/* Text of unknown origin for a terminal: control characters as \xNN; static buffer, cut to fit. */
const char *yk_cli_printable(const char *text, size_t n_bytes);
/* "8.6 MiB" into buf[32]. */
const char *yk_cli_size_text(uint64_t bytes, char *buf);

/* Tokens of a text; *ids is freed by the caller. */
int yk_cli_tokens(const yk_model *model, const char *text, size_t n_bytes, uint32_t flags, int32_t **ids, size_t *n_ids);

/* ---- session.c: model, engine and sequence as the flags ask for ---- */
typedef struct yk_cli_session {
    yk_model *model;
    yk_engine *engine;
    yk_seq *seq;
    yk_sampler *sampler;
    yk_detok *detok;
    yk_machine *machine; /* of --machine */
    yk_plan *plan;       /* of --plan, or made for --explain */
    bool explained;
    yk_model_info info;
    yk_engine_stats stats;
    double live_s;                                /* when a line of --stats was last written */
    yk_work live[YK_N_WORK], reported[YK_N_WORK]; /* what has been said */
    bool shipped;                                 /* the model is the one found without -m */
    char path[4096];                              /* of the model */
} yk_cli_session;

/* Open the model that the flags name, or the shipped one. Exit code. */
int yk_cli_open_model(yk_cli_session *s, const yk_cli_opts *opts, bool vocab_only);
/* Engine options of the flags, without context and threads; files of --machine and --plan are read when s has not got them yet. */
int yk_cli_engine_opts(yk_cli_session *s, const yk_cli_opts *opts, yk_engine_opts *out);
/* plan.c: print the explanation of a plan; on stderr it is left out when quiet. */
int yk_cli_explain(const yk_cli_session *s, const yk_cli_opts *opts, const yk_engine_opts *o, const yk_plan *plan, FILE *out);
/* Open an engine with the flags' options, `context` and `logits_rows` (0: default) and one sequence. */
int yk_cli_open_engine(yk_cli_session *s, const yk_cli_opts *opts, uint32_t context, uint32_t threads, uint32_t logits_rows);
int yk_cli_open_sampler(yk_cli_session *s, const yk_cli_opts *opts);
void yk_cli_close(yk_cli_session *s);
/* Append tokens in pieces of -b with logits of the last one; progress is shown. Exit code. */
int yk_cli_feed(yk_cli_session *s, const yk_cli_opts *opts, const int32_t *ids, size_t n_ids);
/* True for tokens that end a text. BOS does as well: models trained on many texts in a row end one with the next one's BOS. */
bool yk_cli_is_end(const yk_cli_session *s, int32_t token);
/* Replace the escapes of -e in place; unknown ones stay as they are. Returns the new length. */
size_t yk_cli_unescape(char *text, size_t n);
/* Exit code 2 after a message when more than one of -p, -f and --ids is given. */
int yk_cli_one_prompt(const yk_cli_opts *opts);
/* Text of -p or -f, or `fallback`; freed by the caller. */
int yk_cli_prompt_text(const yk_cli_opts *opts, const char *fallback, char **text, size_t *n_bytes);
/* Prompt of -p, -f or --ids as tokens; with none of them `fallback` is the text. */
int yk_cli_prompt_ids(const yk_cli_session *s, const yk_cli_opts *opts, const char *fallback, int32_t **ids, size_t *n_ids);

/* ---- stats.c: --stats; without it these do nothing (but the last) ---- */
/* Between decode calls: now and then a line of what has happened since the last one. Not when stdout is a terminal. */
void yk_cli_stats_live(yk_cli_session *s, const yk_cli_opts *opts);
/* All that has happened since the last report. */
void yk_cli_stats_report(yk_cli_session *s, const yk_cli_opts *opts);
/* What has happened so far is in no report. */
void yk_cli_stats_skip(yk_cli_session *s);

/* ---- json.c ---- */
struct json_t;
/* A JSON string from bytes that need not be UTF-8: invalid ones become U+FFFD. NULL when memory is short. */
struct json_t *yk_cli_json_text(const char *text, size_t n_bytes);
/* Print a value and a newline on stdout and drop the reference. NULL is reported as memory being short. Exit code. */
int yk_cli_json_print(struct json_t *value);

#endif
