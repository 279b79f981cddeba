/* chat.c - yoke chat: a conversation with plain role markers.
 *
 * The whole conversation stays in one sequence; a turn only adds its own tokens. stdout carries the answers and nothing else,
 * so chat can be driven through pipes; prompts and remarks go to stderr.
 *
 * Models without a chat template often write the next user's turn themselves: an answer ends where "\nUser:" begins. Text that
 * may be the beginning of that marker is held back, and its tokens are dropped from the sequence. */
#include "cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char stop_marker[] = "\nUser:";
enum { N_STOP = sizeof stop_marker - 1 };

/* Bytes that grow; memory running out is remembered and reported once. */
typedef struct text_buf {
    char *data;
    size_t n, capacity;
    bool failed;
} text_buf;

typedef struct chat_state {
    yk_cli_session session;
    const yk_cli_opts *opts;
    bool terminal;    /* a person types: prompts are shown */
    bool has_pending; /* the last answer ended between choosing and decoding a token */
    int32_t pending;
    text_buf turn;   /* what the user typed */
    text_buf answer; /* all bytes of the answer in progress */
    size_t printed;  /* bytes of the answer already on stdout */
    size_t *ends;    /* bytes of the answer behind each of its tokens */
    size_t n_ends, ends_capacity;
} chat_state;

static void buf_add(text_buf *b, const char *data, size_t n)
{
    if (b->failed)
        return;
    if (b->n + n + 1 > b->capacity) {
        size_t capacity = 2 * (b->n + n + 128);
        char *more = realloc(b->data, capacity);
        if (!more) {
            b->failed = true;
            return;
        }
        b->data = more;
        b->capacity = capacity;
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n += n;
    b->data[b->n] = 0;
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

typedef enum input { INPUT_TURN, INPUT_END, INPUT_AGAIN, INPUT_FAILED } input;

/* One line without its newline into *line. */
static input read_line(const chat_state *c, const char *prompt, char **line, size_t *capacity, size_t *n)
{
    if (c->terminal && !c->opts->quiet) {
        fputs(prompt, stderr);
        fflush(stderr);
    }
    /* A read alone would miss an interrupt that comes between the prompt and the read. A terminal gives a line a read, so
     * nothing waits in stdio's buffer here. */
    if (c->terminal && !yk_cli_wait_input())
        return INPUT_AGAIN;
    errno = 0;
    ssize_t got = getline(line, capacity, stdin);
    if (got < 0) {
        if (feof(stdin))
            return INPUT_END;
        clearerr(stdin); /* Ctrl-C interrupts the read */
        return errno == EINTR ? INPUT_AGAIN : INPUT_FAILED;
    }
    if (got > 0 && (*line)[got - 1] == '\n')
        got--;
    if (got > 0 && (*line)[got - 1] == '\r')
        got--;
    *n = (size_t)got;
    return INPUT_TURN;
}

/* A turn of one or more lines into c->turn. The end of the input inside a turn ends the turn. */
static input read_turn(chat_state *c)
{
    char *line = NULL;
    size_t capacity = 0, n = 0;
    bool block = false, more = true;
    input result = INPUT_TURN;
    c->turn.n = 0;
    buf_add(&c->turn, "", 0);
    for (bool first = true; more; first = false) {
        input got = read_line(c, first ? "User: " : "... ", &line, &capacity, &n);
        if (got != INPUT_TURN) {
            result = got == INPUT_END && !first ? INPUT_TURN : got;
            break;
        }
        const char *text = line;
        if (!first)
            buf_add(&c->turn, "\n", 1);
        else if (n >= 3 && !memcmp(text, "\"\"\"", 3)) {
            block = true;
            text += 3;
            n -= 3;
        }
        if (block && n >= 3 && !memcmp(text + n - 3, "\"\"\"", 3)) {
            n -= 3;
            more = false;
        } else if (!block) {
            more = n > 0 && text[n - 1] == '\\';
            n -= more;
        }
        buf_add(&c->turn, text, n);
    }
    free(line);
    /* The newlines beside the quotes belong to the quotes. */
    if (block && c->turn.n && c->turn.data[c->turn.n - 1] == '\n')
        c->turn.data[--c->turn.n] = 0;
    if (block && c->turn.n && c->turn.data[0] == '\n')
        memmove(c->turn.data, c->turn.data + 1, c->turn.n--);
    return result;
}

/* ---- answer ------------------------------------------------------------------------------------------------------ */

/* Print the answer up to `end`, without the white space it begins with. Returns false when stdout takes no more. */
static bool print_answer(chat_state *c, size_t end, int *code)
{
    if (c->printed == 0)
        while (c->printed < end && strchr(" \n\t", c->answer.data[c->printed]))
            c->printed++;
    if (end <= c->printed)
        return true;
    size_t from = c->printed;
    c->printed = end;
    return yk_cli_write(c->answer.data + from, end - from, code) && yk_cli_flush(code);
}

/* Where the answer's text may be printed up to: before the stop marker, or before what may become one. */
static size_t safe_end(const chat_state *c, bool *stop)
{
    const char *at = c->answer.n ? memmem(c->answer.data, c->answer.n, stop_marker, N_STOP) : NULL;
    *stop = at != NULL;
    if (at)
        return (size_t)(at - c->answer.data);
    for (size_t held = c->answer.n < N_STOP - 1 ? c->answer.n : N_STOP - 1; held; held--)
        if (!memcmp(c->answer.data + c->answer.n - held, stop_marker, held))
            return c->answer.n - held;
    return c->answer.n;
}

/* Drop the tokens whose text reaches beyond `end` from the sequence; `base` is its length before the answer. */
static int drop_behind(chat_state *c, uint32_t base, size_t end)
{
    yk_error err = {0};
    size_t keep = 0;
    while (keep < c->n_ends && c->ends[keep] <= end)
        keep++;
    if (base + keep < yk_seq_length(c->session.seq) && yk_seq_truncate(c->session.seq, base + (uint32_t)keep, &err))
        return yk_cli_fail(&err);
    return YK_EXIT_OK;
}

static int add_token_text(chat_state *c, int32_t token)
{
    const char *text = "";
    size_t n_bytes = 0;
    if (yk_detok_push(c->session.detok, token, &text, &n_bytes))
        return yk_cli_error(YK_EXIT_RUNTIME, "token %d cannot be turned into text", token);
    buf_add(&c->answer, text, n_bytes);
    if (c->n_ends == c->ends_capacity) {
        size_t capacity = 2 * c->ends_capacity + 256;
        size_t *more = realloc(c->ends, capacity * sizeof *more);
        if (!more)
            return yk_cli_no_memory(capacity * sizeof *more, "the answer");
        c->ends = more;
        c->ends_capacity = capacity;
    }
    c->ends[c->n_ends++] = c->answer.n;
    return c->answer.failed ? yk_cli_no_memory(c->answer.n, "the answer") : YK_EXIT_OK;
}

static void say_full(const chat_state *c)
{
    yk_cli_note(c->opts, "the context of %u tokens is full: /reset begins a new conversation; -c N gives a longer one",
                c->session.stats.context);
}

/* Generate an answer. An interrupt ends it and is no failure. */
static int answer(chat_state *c)
{
    yk_cli_session *s = &c->session;
    yk_error err = {0};
    uint32_t base = yk_seq_length(s->seq);
    int code = YK_EXIT_OK;
    const char *text = "";
    size_t n_bytes = 0, end = 0;
    bool stop = false;
    c->answer.n = c->n_ends = c->printed = 0;
    for (int64_t i = 0; c->opts->n_predict < 0 || i < c->opts->n_predict; i++) {
        const float *logits = yk_logits(s->engine, 0, 0);
        int32_t token;
        if (!logits)
            return yk_cli_error(YK_EXIT_RUNTIME, "the engine gave no logits");
        if (yk_cli_interrupted())
            break;
        if (yk_sampler_sample(s->sampler, logits, &token, &err))
            return yk_cli_fail(&err);
        if (yk_cli_is_end(s, token) && !c->opts->ignore_eos)
            break;
        yk_sampler_accept(s->sampler, token);
        if ((code = add_token_text(c, token)))
            return code;
        end = safe_end(c, &stop);
        if (!print_answer(c, end, &code))
            return code ? code : -1;
        if (stop) {
            yk_detok_flush(s->detok, &text, &n_bytes);
            return drop_behind(c, base, end);
        }
        c->pending = token;
        c->has_pending = true;
        if (yk_seq_length(s->seq) >= s->stats.context) {
            say_full(c);
            break;
        }
        yk_batch_entry entry = {s->seq, &token, 1, YK_LOGITS_LAST};
        if (yk_decode(s->engine, &entry, 1, &err)) {
            if (err.status == YK_ERR_CANCELLED && yk_cli_interrupted())
                break;
            return yk_cli_fail(&err);
        }
        c->has_pending = false;
        yk_cli_stats_live(s, c->opts);
    }
    yk_detok_flush(s->detok, &text, &n_bytes);
    buf_add(&c->answer, text, n_bytes);
    return print_answer(c, c->answer.n, &code) || code ? code : -1;
}

/* ---- conversation ------------------------------------------------------------------------------------------------ */

/* Append the user's turn to the sequence. *fits is false, with nothing changed, when the context has no room for it. */
static int feed_turn(chat_state *c, bool *fits)
{
    yk_cli_session *s = &c->session;
    bool begins = yk_seq_length(s->seq) == 0 && !c->has_pending;
    text_buf text = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0, skip = 0;
    char first[8];
    size_t first_bytes = 0;
    if (!begins)
        buf_add(&text, "\n", 1);
    else if (c->opts->system) {
        buf_add(&text, c->opts->system, strlen(c->opts->system));
        if (c->opts->escape && !text.failed)
            text.n = yk_cli_unescape(text.data, text.n);
        buf_add(&text, "\n", 1);
    }
    buf_add(&text, "User: ", 6);
    buf_add(&text, c->turn.data, c->turn.n);
    buf_add(&text, "\nAssistant:", 11);
    *fits = true;
    int code = text.failed || c->turn.failed
                   ? yk_cli_no_memory(text.n, "the turn")
                   : yk_cli_tokens(s->model, text.data, text.n, begins ? YK_TOK_SPECIAL : 0, &ids, &n_ids);
    free(text.data);
    /* A SentencePiece vocabulary puts a space before every text; in the middle of one it does not belong there. */
    if (!code && !begins && n_ids > 1 && !yk_token_text(s->model, ids[0], false, first, sizeof first, &first_bytes) &&
        first_bytes == 1 && first[0] == ' ')
        skip = 1;
    if (!code && n_ids - skip + yk_seq_length(s->seq) + c->has_pending > s->stats.context) {
        *fits = false;
        yk_cli_error(
            0,
            "this turn has %zu tokens, but of the context of %u only %u are free: /reset begins a new conversation; -c N "
            "gives a longer one",
            n_ids - skip, s->stats.context, s->stats.context - yk_seq_length(s->seq));
    } else if (!code) {
        if (c->has_pending)
            code = yk_cli_feed(s, c->opts, &c->pending, 1);
        c->has_pending = c->has_pending && code;
        for (size_t i = skip; !code && i < n_ids; i++)
            yk_sampler_accept(s->sampler, ids[i]);
        if (!code)
            code = yk_cli_feed(s, c->opts, ids + skip, n_ids - skip);
    }
    free(ids);
    return code;
}

static int reset(chat_state *c)
{
    yk_error err = {0};
    c->has_pending = false;
    yk_sampler_reset(c->session.sampler);
    return yk_seq_truncate(c->session.seq, 0, &err) ? yk_cli_fail(&err) : YK_EXIT_OK;
}

/* A line that begins with '/'. Returns true when the chat ends. */
static bool do_command(chat_state *c, int *code)
{
    const char *text = c->turn.data;
    if (!strcmp(text, "/exit") || !strcmp(text, "/quit"))
        return true;
    if (!strcmp(text, "/reset"))
        *code = reset(c);
    else if (!strcmp(text, "/help"))
        fputs("/reset   begin a new conversation\n/exit    end (Ctrl-D does too)\n/help    this list\n"
              "A line that ends with \\ goes on in the next one; \"\"\" begins and ends a block of lines.\n"
              "Ctrl-C stops an answer and keeps the conversation.\n",
              stderr);
    else
        yk_cli_note(c->opts, "unknown command '%s': /help lists them", text);
    return *code != YK_EXIT_OK;
}

/* One turn and its answer. Returns false when the chat ends with *code. */
static bool exchange(chat_state *c, int *code)
{
    yk_cli_session *s = &c->session;
    uint32_t before = yk_seq_length(s->seq);
    bool fits, pending = c->has_pending;
    yk_error err = {0};
    *code = feed_turn(c, &fits);
    if (!fits && !c->terminal) {
        *code = YK_EXIT_USAGE; /* a script that feeds the turns cannot react */
        return false;
    }
    if (!*code && fits) {
        if (c->terminal && !c->opts->quiet)
            fputs("Assistant: ", stderr);
        *code = answer(c);
        int write_code = YK_EXIT_OK;
        if (!*code && (!yk_cli_write("\n", 1, &write_code) || !yk_cli_flush(&write_code)))
            *code = write_code ? write_code : -1;
        yk_cli_stats_report(s, c->opts);
    } else if (yk_cli_interrupted()) { /* while the turn was read: it is taken back */
        c->has_pending = pending;
        *code = yk_seq_length(s->seq) > before && yk_seq_truncate(s->seq, before, &err) ? yk_cli_fail(&err) : YK_EXIT_OK;
    }
    return *code == YK_EXIT_OK;
}

static int talk(chat_state *c)
{
    int code = YK_EXIT_OK, stops = 0;
    for (;;) {
        int signal_number = yk_cli_interrupted();
        if (signal_number == SIGTERM || (signal_number && !c->terminal))
            return 128 + signal_number;
        yk_cli_interrupt_clear();
        input got = read_turn(c);
        if (got == INPUT_AGAIN) {
            if (++stops == 2)
                return 128 + SIGINT;
            if (c->terminal)
                fputs("\n(Ctrl-D or /exit ends)\n", stderr);
            continue;
        }
        stops = 0;
        if (got == INPUT_FAILED)
            return yk_cli_error(YK_EXIT_RUNTIME, "stdin: %s", strerror(errno));
        if (got == INPUT_END) {
            if (c->terminal)
                fputc('\n', stderr);
            return YK_EXIT_OK;
        }
        if (c->turn.n == 0)
            continue;
        if (c->turn.data[0] == '/' ? do_command(c, &code) : !exchange(c, &code))
            return code > 0 ? code : YK_EXIT_OK;
    }
}

int yk_cli_chat(yk_cli_opts *opts)
{
    chat_state c = {.opts = opts, .terminal = isatty(STDIN_FILENO)};
    yk_cli_session *s = &c.session;
    yk_error err = {0};
    int code = yk_cli_open_model(s, opts, false);
    if (!code)
        code = yk_cli_open_engine(s, opts, (uint32_t)opts->context, (uint32_t)opts->threads, 0);
    if (!code)
        code = yk_cli_open_sampler(s, opts);
    if (!code && yk_detok_open(&s->detok, s->model, false, &err))
        code = yk_cli_fail(&err);
    if (!code) {
        yk_cli_note(opts, "%s on %s, %u thread%s, %s, context %u tokens%s", s->info.name, s->stats.device, s->stats.threads,
                    s->stats.threads == 1 ? "" : "s", s->stats.isa, s->stats.context,
                    c.terminal ? "; /help lists commands" : "");
        code = talk(&c);
    }
    free(c.turn.data);
    free(c.answer.data);
    free(c.ends);
    yk_cli_close(s);
    return code;
}
