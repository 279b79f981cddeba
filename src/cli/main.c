/* main.c - the table of subcommands, and what `yoke` does without one. */
#include "cli.h"
#include <fcntl.h>
#include <string.h>

static const yk_cli_command commands[] = {
    {"run", YK_CMD_RUN, "[MODEL.gguf] [flags]", "generate text after a prompt",
     "The generated text goes to stdout, a line about where it ran to stderr. Without a model and a prompt the model that "
     "comes\n"
     "with yoke tells a story.",
     1, yk_cli_run},
    {"chat", YK_CMD_CHAT, "[MODEL.gguf] [flags]", "talk with a model",
     "A line that ends with \\ goes on in the next one; a line \"\"\" begins and ends a block of lines. Ctrl-C stops the "
     "answer\n"
     "and keeps the conversation, Ctrl-D ends. /help lists the commands.",
     1, yk_cli_chat},
    {"inspect", YK_CMD_INSPECT, "[MODEL.gguf] [flags]", "show what a model file holds",
     "The whole file is checked as for running it.", 1, yk_cli_inspect},
    {"tokenize", YK_CMD_TOKENIZE, "[MODEL.gguf] [flags]", "print the token ids of a text",
     "Token ids on one line. Without -p and -f the text comes from stdin. Special tokens are added and recognised.", 1,
     yk_cli_tokenize},
    {"perplexity", YK_CMD_PERPLEXITY, "[MODEL.gguf] -f FILE [flags]", "measure how well a model predicts a text",
     "The text is cut into whole chunks of -c tokens, each begins with BOS, and the second half of each is scored: the rule\n"
     "of llama-perplexity.",
     1, yk_cli_perplexity},
    {"bench", YK_CMD_BENCH, "[MODEL.gguf] [flags]", "measure speed",
     "One row for each prompt length, each generation length and each pair, at each depth and thread count. A first run is "
     "not\n"
     "counted. The roofline share of a generation is its bytes per second over the read rate measured before and after it.",
     1, yk_cli_bench},
    {"profile", YK_CMD_PROFILE, "[MODEL.gguf] [flags]", "measure this machine for the planner",
     "Products by weight type, memory, copies and hand-off of the CPU and of each device. Nothing else should run meanwhile.",
     1, yk_cli_profile},
    {"plan", YK_CMD_PLAN, "[MODEL.gguf] [flags]", "show where the planner would place a model",
     "What runs where, how fast it should be, what limits it and why not otherwise. With -o json it is a file for --plan.", 1,
     yk_cli_plan},
    {"devices", YK_CMD_DEVICES, "[flags]", "show what this machine computes with", "", 0, yk_cli_devices},
    {"synth", YK_CMD_SYNTH, "SHAPE TYPE -o FILE [flags]", "write a model with a known shape and random weights",
     "For measuring speed and memory without a download; the text such a model generates means nothing.", 2, yk_cli_synth},
};

enum { N_COMMANDS = sizeof commands / sizeof *commands };

static const yk_cli_command *find_command(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i].name, name))
            return &commands[i];
    return NULL;
}

static int unknown_command(const char *name)
{
    const char *best_name = NULL;
    uint32_t best = 3;
    for (size_t i = 0; i < N_COMMANDS; i++) {
        uint32_t d = yk_cli_distance(name, commands[i].name);
        if (d < best && d < strlen(name)) {
            best = d;
            best_name = commands[i].name;
        }
    }
    if (best_name)
        return yk_cli_error(YK_EXIT_USAGE, "unknown command '%s': did you mean %s? See yoke --help", name, best_name);
    return yk_cli_error(YK_EXIT_USAGE, "unknown command '%s': see yoke --help", name);
}

static void print_help(FILE *out)
{
    fprintf(out, "Usage: yoke COMMAND [flags]\n\nRun large language models on the machine at hand.\n\nCommands:\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-12s%s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\n  yoke COMMAND --help   the flags of a command\n  yoke --version        the version\n\n"
                 "`yoke run` alone tells a story with the model that comes with yoke.\n"
                 "Exit codes: 0 success, 1 run-time failure, 2 wrong usage, 3 bad model or input file, 4 not enough memory,\n"
                 "128 + N ended by signal N (130: Ctrl-C).\n");
}

static void print_command_help(FILE *out, const yk_cli_command *command)
{
    fprintf(out, "Usage: yoke %s %s\n\n%c%s.\n%s%s\nFlags:\n", command->name, command->usage, command->summary[0] - 32,
            command->summary + 1, command->text, command->text[0] ? "\n" : "");
    yk_cli_print_flags(out, command->bit);
}

static _Atomic(bool) error_logged; /* by any thread of the library */

/* An error that comes by the log has no status to end the program with: a trace that could not be written when all was done. */
static void print_log(void *user, yk_log_level level, const char *text)
{
    if (level == YK_LOG_ERROR) {
        error_logged = true;
        yk_cli_error(YK_EXIT_RUNTIME, "%s", text);
    } else
        yk_cli_note(user, "%s%s", level == YK_LOG_WARN ? "warning: " : "", text);
}

static int run_command(const yk_cli_command *command, int argc, char **argv)
{
    static yk_cli_opts opts; /* the log receiver keeps its address until the end */
    int code = yk_cli_parse(&opts, command, argc, argv);
    if (code)
        return code;
    if (opts.help) {
        print_command_help(yk_cli_out, command);
        return yk_cli_finish(YK_EXIT_OK);
    }
    yk_log_set(print_log, &opts, opts.verbose > 1 ? YK_LOG_DEBUG : opts.verbose ? YK_LOG_INFO : YK_LOG_WARN);
    yk_cli_catch_signals();
    code = yk_cli_finish(command->run(&opts));
    if (!code && error_logged)
        code = YK_EXIT_RUNTIME;
    yk_cli_progress_clear();
    return code;
}

/* A standard descriptor that is closed would be given to the next file opened, and text for stdout would be written into it. */
static void hold_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd)
            return;
}

int main(int argc, char **argv)
{
    const yk_cli_command *command;
    hold_standard_files();
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is seen as EPIPE and ends the program quietly */
    signal(SIGXFSZ, SIG_IGN); /* a file at its limit is an error of the write, and no half file stays behind */
    if (!yk_cli_open_output()) {
        fputs("yoke: not enough memory\n", stderr);
        return YK_EXIT_MEMORY;
    }
    if (argc < 2) {
        print_help(stderr);
        return YK_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        fprintf(yk_cli_out, "yoke %s\n", yk_version());
        return yk_cli_finish(YK_EXIT_OK);
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || (!strcmp(name, "help") && argc == 2)) {
        print_help(yk_cli_out);
        return yk_cli_finish(YK_EXIT_OK);
    }
    if (!strcmp(name, "help")) {
        if (!(command = find_command(argv[2])))
            return unknown_command(argv[2]);
        print_command_help(yk_cli_out, command);
        return yk_cli_finish(YK_EXIT_OK);
    }
    if (name[0] == '-')
        return yk_cli_error(YK_EXIT_USAGE, "unknown flag %s before a command: see yoke --help", name);
    if (!(command = find_command(name)))
        return unknown_command(name);
    return run_command(command, argc - 2, argv + 2);
}
