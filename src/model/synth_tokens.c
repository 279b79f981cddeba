/* Vocabularies of pronounceable syllables: real ones in form (byte tokens, pieces that merge step by step, special tokens where
 * the model has them), of exactly the size asked for. Text of any kind can be tokenised; what is not syllables becomes letters
 * and bytes. */
#include <stdio.h>
#include <string.h>

#include "src/model/synth.h"

enum { N_ONSETS = 20, N_VOWELS = 5, N_SYLLABLES = N_ONSETS * N_VOWELS };
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_UNUSED = 5, TYPE_BYTE = 6 };
enum { MAX_PIECE = 64 };

static const char space_spm[] = "\xe2\x96\x81"; /* U+2581 */
static const char space_bpe[] = "\xc4\xa0";     /* U+0120: byte 32 in GPT-2's alphabet */

/* Piece number i: all words of one syllable, without and with the mark of a space before them, then those of two, then of three
 * and four. head (may be NULL) receives the length of the piece without its last syllable, 0 when it is one letter that merges
 * with another. */
static size_t piece(uint32_t i, const char *space, char *buf, size_t *head)
{
    uint32_t n_syllables = 1, n_words = N_SYLLABLES;
    while (i >= 2 * n_words && n_syllables < 4) {
        i -= 2 * n_words;
        n_words *= N_SYLLABLES;
        n_syllables++;
    }
    const bool with_space = i >= n_words;
    const uint32_t word = with_space ? i - n_words : i;
    size_t n = 0;
    if (with_space) {
        n = strlen(space);
        memcpy(buf, space, n);
    }
    uint32_t rest = word, unit = n_words;
    for (uint32_t s = 0; s < n_syllables; s++) {
        unit /= N_SYLLABLES;
        const uint32_t syllable = rest / unit;
        rest %= unit;
        if (head)
            *head = n;
        buf[n++] = "bcdfghjklmnpqrstvwxz"[syllable / N_VOWELS];
        buf[n++] = "aeiou"[syllable % N_VOWELS];
    }
    return n;
}

static void put_types(yk_gguf_writer *w, const int32_t *types, uint32_t n)
{
    yk_gguf_put_array(w, "tokenizer.ggml.token_type", YK_GGUF_I32, n);
    yk_gguf_elem(w, types, n * sizeof *types);
}

/* ---- SentencePiece ---- */

/* <unk> <s> </s>, 256 bytes, the space mark, printable ASCII, syllables. Returns the length of token i. */
static size_t spm_token(uint32_t i, char *buf, int32_t *type)
{
    static const char *const special[3] = {"<unk>", "<s>", "</s>"};
    *type = TYPE_NORMAL;
    if (i < 3) {
        *type = i == 0 ? TYPE_UNKNOWN : TYPE_CONTROL;
        return (size_t)snprintf(buf, MAX_PIECE, "%s", special[i]);
    }
    if (i < 259) {
        *type = TYPE_BYTE;
        return (size_t)snprintf(buf, MAX_PIECE, "<0x%02X>", i - 3);
    }
    if (i == 259)
        return (size_t)snprintf(buf, MAX_PIECE, "%s", space_spm);
    if (i < 260 + 94) {
        buf[0] = (char)('!' + (i - 260));
        return 1;
    }
    return piece(i - (260 + 94), space_spm, buf, NULL);
}

static void put_spm(yk_gguf_writer *w, uint32_t n, int32_t *types)
{
    char buf[MAX_PIECE];
    yk_gguf_put_str(w, "tokenizer.ggml.model", "llama");
    yk_gguf_put_str(w, "tokenizer.ggml.pre", "default");
    yk_gguf_put_array(w, "tokenizer.ggml.tokens", YK_GGUF_STR, n);
    for (uint32_t i = 0; i < n; i++) {
        const size_t len = spm_token(i, buf, &types[i]);
        yk_gguf_elem_str(w, buf, len);
    }
    yk_gguf_put_array(w, "tokenizer.ggml.scores", YK_GGUF_F32, n);
    for (uint32_t i = 0; i < n; i++) {
        const float score = i < 259 ? 0.0f : -(float)(i - 259);
        yk_gguf_elem(w, &score, sizeof score);
    }
    put_types(w, types, n);
    yk_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    yk_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
    yk_gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", 0);
    yk_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    yk_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", false);
}

/* ---- byte-level BPE ---- */

/* The 256 letters that stand for bytes, in the order of GPT-2's vocabulary: printable ones are themselves, the others follow
 * from U+0100. */
static size_t byte_letter(uint32_t i, char *buf)
{
    uint32_t c;
    if (i < 94)
        c = '!' + i;
    else if (i < 94 + 12)
        c = 0xa1 + (i - 94);
    else if (i < 94 + 12 + 82)
        c = 0xae + (i - 94 - 12);
    else
        c = 0x100 + (i - 188);
    if (c < 0x80) {
        buf[0] = (char)c;
        return 1;
    }
    buf[0] = (char)(0xc0 | c >> 6);
    buf[1] = (char)(0x80 | (c & 63));
    return 2;
}

typedef struct special {
    uint32_t at; /* from the first special token on */
    const char *text;
} special;

typedef struct bpe_vocab {
    const char *pre;
    const char *before, *behind; /* of the number in the name of the other special tokens */
    uint32_t n_special;          /* size of the special range at the end */
    uint32_t bos, eos;           /* in that range */
    const special *named;
    uint32_t n_named;
} bpe_vocab;

/* Distances are those of the published vocabularies: qwen3 has 151643 pieces before its special tokens, gpt-oss 199998. */
static const special qwen2_special[] = {{0, "<|endoftext|>"}, {1, "<|im_start|>"}, {2, "<|im_end|>"}};
static const special gpt4o_special[] = {{0, "<|startoftext|>"}, {1, "<|endoftext|>"}, {4, "<|return|>"},
                                        {5, "<|constrain|>"},   {7, "<|channel|>"},   {8, "<|start|>"},
                                        {9, "<|end|>"},         {10, "<|message|>"},  {14, "<|call|>"}};
static const bpe_vocab qwen2 = {"qwen2", "[PAD", "]", 293, 0, 2, qwen2_special, 3};
static const bpe_vocab gpt4o = {"gpt-4o", "<|reserved_", "|>", 1090, 0, 4, gpt4o_special, 9};

static const char *special_name(const bpe_vocab *v, uint32_t at)
{
    for (uint32_t i = 0; i < v->n_named; i++)
        if (v->named[i].at == at)
            return v->named[i].text;
    return NULL;
}

/* Merges yield the pieces of one and two syllables, in order; longer ones are filler that text does not reach. */
static void put_merges(yk_gguf_writer *w, uint32_t n_pieces)
{
    char buf[MAX_PIECE];
    const uint32_t all = 2 * (N_SYLLABLES + N_SYLLABLES * N_SYLLABLES), n = n_pieces < all ? n_pieces : all;
    yk_gguf_put_array(w, "tokenizer.ggml.merges", YK_GGUF_STR, n);
    for (uint32_t i = 0; i < n; i++) {
        size_t head;
        size_t len = piece(i, space_bpe, buf, &head);
        if (head == 0)
            head = 1; /* one syllable: its two letters */
        memmove(buf + head + 1, buf + head, len - head);
        buf[head] = ' ';
        yk_gguf_elem_str(w, buf, len + 1);
    }
}

static void put_bpe(yk_gguf_writer *w, const bpe_vocab *v, uint32_t n, int32_t *types)
{
    char buf[MAX_PIECE];
    const uint32_t first_special = n - v->n_special;
    yk_gguf_put_str(w, "tokenizer.ggml.model", "gpt2");
    yk_gguf_put_str(w, "tokenizer.ggml.pre", v->pre);
    yk_gguf_put_array(w, "tokenizer.ggml.tokens", YK_GGUF_STR, n);
    for (uint32_t i = 0; i < n; i++) {
        size_t len;
        types[i] = TYPE_NORMAL;
        if (i < 256) {
            len = byte_letter(i, buf);
        } else if (i < first_special) {
            len = piece(i - 256, space_bpe, buf, NULL);
        } else {
            const char *name = special_name(v, i - first_special);
            types[i] = name ? TYPE_CONTROL : TYPE_UNUSED;
            len = (size_t)(name ? snprintf(buf, sizeof buf, "%s", name)
                                : snprintf(buf, sizeof buf, "%s%u%s", v->before, i, v->behind));
        }
        yk_gguf_elem_str(w, buf, len);
    }
    put_types(w, types, n);
    put_merges(w, first_special - 256);
    yk_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", first_special + v->bos);
    yk_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", first_special + v->eos);
    yk_gguf_put_u32(w, "tokenizer.ggml.padding_token_id", first_special);
    yk_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
}

void yk_synth_put_vocab(yk_gguf_writer *w, yk_synth_vocab vocab, uint32_t n_vocab)
{
    int32_t *types = yk_alloc(YK_MEM_RUNTIME, n_vocab, sizeof *types);
    if (!types) {
        if (w->failure.status == YK_OK)
            yk_fail_memory(&w->failure, n_vocab * 4ull, "vocabulary");
        return;
    }
    if (vocab == YK_SYNTH_SPM)
        put_spm(w, n_vocab, types);
    else
        put_bpe(w, vocab == YK_SYNTH_QWEN2 ? &qwen2 : &gpt4o, n_vocab, types);
    yk_free(types);
}
