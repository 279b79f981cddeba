/* tok_vocab.h - small vocabularies built in memory, for the tokenizer's tests and fuzzers. */
#ifndef YK_TESTS_TOK_VOCAB_H
#define YK_TESTS_TOK_VOCAB_H

#include "src/model/tokenizer.h"
#include "tests/gguf_build.h"

typedef struct tv_file {
    gb_file g;
    gb_buf image;
} tv_file;

/* Only tokenizer.ggml.model (NULL: not even that). */
void tv_empty(tv_file *f, const char *model);
void tv_strs(tv_file *f, const char *key, const char *const *s, size_t n);
/* The same with lengths, for strings that hold NUL. */
void tv_strs_n(tv_file *f, const char *key, const yk_str *s, size_t n);

/* A `llama` vocabulary: <unk> <s> </s>, 256 byte tokens from id 3, then these. */
enum {
    TV_SPM_SP = 259, /* one space */
    TV_SPM_A,        /* a */
    TV_SPM_AA,       /* aa */
    TV_SPM_SP_AB,    /* space ab, by ab */
    TV_SPM_AB,       /* ab */
    TV_SPM_X,        /* <x>, user-defined */
    TV_SPM_XXY,      /* <x><y>, user-defined */
    TV_SPM_END,      /* <|end|>, control */
    TV_SPM_S,        /* "s>", which would make </s> */
    TV_SPM_SLASH,    /* "</" */
    TV_SPM_B,        /* b */
    TV_SPM_N
};
#define TV_BYTE(b) (3 + (b))
void tv_spm(tv_file *f);

/* A `gpt2` vocabulary: the bytes are ids 0 to 255, then these. */
enum {
    TV_BPE_TH = 256, /* th */
    TV_BPE_THE,      /* the */
    TV_BPE_SP_THE,   /* space the */
    TV_BPE_EH,       /* eh */
    TV_BPE_HTEH,     /* hteh, which no merge yields */
    TV_BPE_EOS,      /* <|im_end|>, control */
    TV_BPE_N
};
void tv_bpe(tv_file *f, const char *pre);

void tv_image(tv_file *f);
/* Image, reader, tokenizer; ends the program when one fails. */
void tv_open(tv_file *f, yk_gguf *gguf, yk_tokenizer **tok);
void tv_free(tv_file *f);
void tv_close(tv_file *f, yk_gguf *gguf, yk_tokenizer **tok);

#endif
