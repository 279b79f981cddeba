#define PCRE2_CODE_UNIT_WIDTH 8
#include "src/model/pretok.h"

#include <inttypes.h>
#include <string.h>

#include <pcre2.h>

/* The patterns are those of the models' tokenizer.json files, as llama.cpp names them. Two things are spelled differently:
 * white space is the Unicode property White_Space (PCRE2's \s has U+180E as well), and quantifiers whose backtracking cannot
 * succeed are possessive, so that no text costs more than linear time. */
#define WS  "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S   "[" WS "]"
#define NLN "[^\\r\\n\\p{L}\\p{N}]" /* what may stand before a word: no line end, letter or number */
/* white space: line ends with what precedes them; all but the last one before a word; the rest */
#define BLANK_TAIL S "+(?![^" WS "])|" S "+"
#define BLANKS     S "*[\\r\\n]+|" BLANK_TAIL
/* English contractions */
#define SUFFIX "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SIGNS  " ?[^" WS "\\p{L}\\p{N}]++"
#define UPPER  "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

#define GPT2      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}++| ?\\p{N}++|" SIGNS "|" BLANK_TAIL
#define QWEN2     SUFFIX "|" NLN "?\\p{L}++|\\p{N}|" SIGNS "[\\r\\n]*|" BLANKS
#define QWEN35    SUFFIX "|" NLN "?[\\p{L}\\p{M}]++|\\p{N}| ?[^" WS "\\p{L}\\p{M}\\p{N}]++[\\r\\n]*|" BLANKS
#define LLAMA3    SUFFIX "|" NLN "?\\p{L}++|\\p{N}{1,3}|" SIGNS "[\\r\\n]*|" BLANKS
#define MINICPM5  SUFFIX "|" NLN "?\\p{L}++|\\p{N}++|" SIGNS "[\\r\\n]*|" BLANKS
#define SEEDCODER SUFFIX "|" NLN "?\\p{L}++|\\p{N}| ?[^" WS "\\p{L}\\p{N}\\r\\n]++|" BLANKS
#define BAILING   "'(?i:[sdmt]|ll|ve|re)|" NLN "?+\\p{L}++|\\p{N}|" SIGNS "[\\r\\n]*|" S "*[\\r\\n]|" BLANK_TAIL
#define GPT4O                                                                                                                  \
    NLN "?" UPPER "*" LOWER "+" SUFFIX "?|" NLN "?" UPPER "+" LOWER "*" SUFFIX "?|\\p{N}{1,3}|" SIGNS "[\\r\\n/]*|" BLANKS
#define TEKKEN NLN "?" UPPER "*" LOWER "+|" NLN "?" UPPER "+" LOWER "*|\\p{N}|" SIGNS "[\\r\\n/]*|" BLANKS

#define DS_V3                                                                                                                  \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"                        \
    "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" BLANKS
#define DS_CJK   "[\\x{800}-\\x{9fa5}\\x{ac00}-\\x{d7ff}]+"
#define DS_SIGNS S "?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"
/* \s+$, without trying again from every blank of a run that does not end the piece */
#define DS_END "(?<!" S ")" S "++\\z"
/* letters of the scripts with case, as deepseek-llm lists them */
#define DS_LETTERS                                                                                                             \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}"           \
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}"             \
    "\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}"               \
    "\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}"                          \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}"                          \
    "\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}"                          \
    "\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}"         \
    "\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}"         \
    "\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}"         \
    "\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}"                          \
    "\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"                        \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}"                \
    "\\x{1e900}-\\x{1e943}"

typedef struct rule {
    const char *names;                        /* separated by spaces */
    const char *stages[YK_PRETOK_MAX_STAGES]; /* NULL behind the last */
    uint32_t flags;
} rule;

static const rule rules[] = {
    {"gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4", {GPT2}, 0},
    {"llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
     {LLAMA3},
     YK_PRETOK_ADD_BOS | YK_PRETOK_IGNORE_MERGES},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {LLAMA3}, 0},
    {"qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", {QWEN2}, 0},
    {"qwen35", {QWEN35}, 0},
    {"gpt-4o llama4 kanana2 minimax-m2", {GPT4O}, 0},
    {"tekken", {TEKKEN}, YK_PRETOK_ADD_BOS | YK_PRETOK_IGNORE_MERGES},
    {"deepseek-llm", {"[\\r\\n]", S "?[" DS_LETTERS "]+", DS_SIGNS, DS_END, DS_CJK, "\\p{N}+"}, 0},
    {"deepseek-coder", {"[\\r\\n]", S "?\\p{L}+", S "?\\p{P}+", DS_CJK, "\\p{N}"}, 0},
    {"deepseek-v3 hunyuan-dense joyai-llm", {"\\p{N}{1,3}", "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{30ff}]+", DS_V3}, 0},
    {"falcon", {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}, 0},
    {"starcoder refact command-r smollm codeshell exaone minerva-7b mellum2", {"\\p{N}", GPT2}, 0},
    {"bailingmoe bailingmoe2 llada-moe", {BAILING}, 0},
    {"seed-coder", {SEEDCODER}, 0},
    {"minicpm5", {"\\p{N}{1,3}", MINICPM5}, YK_PRETOK_IGNORE_MERGES},
    {"default", {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, 0},
};
enum { N_RULES = sizeof rules / sizeof rules[0] };

struct yk_pretok {
    uint32_t n_stages, flags;
    pcre2_general_context *ctx; /* PCRE2 allocates through it */
    pcre2_code *stages[YK_PRETOK_MAX_STAGES];
};

static void *pcre_alloc(size_t n, void *user)
{
    (void)user;
    return yk_alloc(YK_MEM_RUNTIME, n, 1);
}

static void pcre_free(void *p, void *user)
{
    (void)user;
    yk_free(p);
}

static bool in_names(const char *names, const char *name, uint64_t n)
{
    for (const char *p = names; *p;) {
        const size_t len = strcspn(p, " ");
        if (len == n && memcmp(p, name, len) == 0)
            return true;
        p += len + (p[len] == ' ');
    }
    return false;
}

const char *yk_pretok_names(uint32_t index)
{
    return index < N_RULES ? rules[index].names : NULL;
}

static yk_status compile_stage(pcre2_code **out, pcre2_general_context *ctx, const char *pattern, yk_error *err)
{
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_compile_context *cc = pcre2_compile_context_create(ctx);
    if (cc)
        *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (!cc || (!*out && code == PCRE2_ERROR_HEAP_FAILED))
        return yk_fail_memory(err, strlen(pattern), "a pre-tokenizer pattern");
    YK_FAIL_IF(!*out, err, YK_ERR_RUNTIME, "PCRE2 error %d at %zu of pre-tokenizer pattern %.300s", code, (size_t)at, pattern);
    /* Without JIT (not built in, or executable memory is forbidden) the interpreter gives the same matches. */
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return YK_OK;
}

yk_status yk_pretok_open(yk_pretok **out, const char *name, uint64_t n, yk_error *err)
{
    *out = NULL;
    const rule *r = NULL;
    for (uint32_t i = 0; i < N_RULES && !r; i++)
        if (in_names(rules[i].names, name, n))
            r = &rules[i];
    YK_FAIL_IF(!r, err, YK_ERR_INPUT, "tokenizer.ggml.pre: unknown pre-tokenizer '%.*s'; a newer yoke may know it",
               (int)(n < 64 ? n : 64), name);
    yk_pretok *p = yk_alloc(YK_MEM_RUNTIME, 1, sizeof *p);
    if (!p)
        return yk_fail_memory(err, sizeof *p, "a pre-tokenizer");
    p->flags = r->flags;
    p->ctx = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    yk_status st = p->ctx ? YK_OK : yk_fail_memory(err, 64, "a pre-tokenizer");
    while (st == YK_OK && p->n_stages < YK_PRETOK_MAX_STAGES && r->stages[p->n_stages]) {
        st = compile_stage(&p->stages[p->n_stages], p->ctx, r->stages[p->n_stages], err);
        p->n_stages += st == YK_OK;
    }
    if (st != YK_OK)
        yk_pretok_close(&p);
    *out = p;
    return st;
}

void yk_pretok_close(yk_pretok **pretok)
{
    yk_pretok *p = *pretok;
    if (!p)
        return;
    for (uint32_t i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->stages[i]);
    pcre2_general_context_free(p->ctx);
    yk_free(p);
    *pretok = NULL;
}

uint32_t yk_pretok_flags(const yk_pretok *pretok)
{
    return pretok->flags;
}

typedef struct split_ctx {
    const yk_pretok *pretok;
    pcre2_match_data *match;
    yk_pretok_fn fn;
    void *user;
} split_ctx;

/* Cut one piece with pattern `stage`, hand the parts on to the next one. Depth: at most YK_PRETOK_MAX_STAGES. */
static yk_status split_stage(const split_ctx *c, uint32_t stage, const char *text, size_t n, yk_error *err)
{
    if (stage == c->pretok->n_stages)
        return c->fn(c->user, text, n, err);
    size_t done = 0, pos = 0;
    while (pos < n) {
        const int rc = pcre2_match(c->pretok->stages[stage], (PCRE2_SPTR)text, n, pos, PCRE2_NO_UTF_CHECK, c->match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc == PCRE2_ERROR_NOMEMORY)
            return yk_fail_memory(err, n, "matching a pre-tokenizer pattern");
        YK_FAIL_IF(rc < 0, err, YK_ERR_RUNTIME, "PCRE2 error %d while cutting %zu bytes of text into words; try a shorter text",
                   rc, n);
        const PCRE2_SIZE *at = pcre2_get_ovector_pointer(c->match);
        const size_t from = at[0], to = at[1];
        YK_FAIL_IF(to <= from || from < done, err, YK_ERR_RUNTIME, "a pre-tokenizer pattern matched nothing at byte %zu", from);
        if (from > done)
            YK_TRY(split_stage(c, stage + 1, text + done, from - done, err));
        YK_TRY(split_stage(c, stage + 1, text + from, to - from, err));
        pos = done = to;
    }
    return n > done ? split_stage(c, stage + 1, text + done, n - done, err) : YK_OK;
}

yk_status yk_pretok_split(const yk_pretok *pretok, const char *text, size_t n, yk_pretok_fn fn, void *user, yk_error *err)
{
    split_ctx c = {.pretok = pretok, .fn = fn, .user = user};
    c.match = pcre2_match_data_create(1, pretok->ctx);
    if (!c.match)
        return yk_fail_memory(err, sizeof(PCRE2_SIZE) * 2, "matching a pre-tokenizer pattern");
    const yk_status st = split_stage(&c, 0, text, n, err);
    pcre2_match_data_free(c.match);
    return st;
}
