#include "tests/tok_vocab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tv_empty(tv_file *f, const char *model)
{
    *f = (tv_file){0};
    gb_init(&f->g);
    gb_str(&f->g, "general.architecture", "llama");
    if (model)
        gb_str(&f->g, "tokenizer.ggml.model", model);
}

void tv_strs_n(tv_file *f, const char *key, const yk_str *s, size_t n)
{
    gb_buf b = {0};
    for (size_t i = 0; i < n; i++) {
        gb_put(&b, &s[i].n, sizeof s[i].n);
        gb_put(&b, s[i].p, s[i].n);
    }
    gb_arr(&f->g, key, YK_GGUF_STR, b.p, n, b.n);
    free(b.p);
}

void tv_strs(tv_file *f, const char *key, const char *const *s, size_t n)
{
    yk_str *list = calloc(n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++)
        list[i] = (yk_str){s[i], strlen(s[i])};
    tv_strs_n(f, key, list, n);
    free(list);
}

void tv_spm(tv_file *f)
{
    static const struct {
        const char *text;
        float score;
        int32_t type;
    } more[] = {{"\xe2\x96\x81", -5, 1},
                {"a", -6, 1},
                {"aa", -2, 1},
                {"\xe2\x96\x81"
                 "ab",
                 -1, 1},
                {"ab", -3, 1},
                {"<x>", 0, 4},
                {"<x><y>", 0, 4},
                {"<|end|>", 0, 3},
                {"s>", -7, 1},
                {"</", -8, 1},
                {"b", -9, 1}};
    const char *tokens[TV_SPM_N] = {"<unk>", "<s>", "</s>"};
    float scores[TV_SPM_N] = {0};
    int32_t types[TV_SPM_N] = {2, 3, 3};
    char bytes[256][7];
    for (int b = 0; b < 256; b++) {
        snprintf(bytes[b], sizeof bytes[b], "<0x%02X>", (unsigned)b);
        tokens[TV_BYTE(b)] = bytes[b];
        types[TV_BYTE(b)] = 6;
    }
    for (int i = TV_SPM_SP; i < TV_SPM_N; i++) {
        tokens[i] = more[i - TV_SPM_SP].text;
        scores[i] = more[i - TV_SPM_SP].score;
        types[i] = more[i - TV_SPM_SP].type;
    }
    tv_empty(f, "llama");
    tv_strs(f, "tokenizer.ggml.tokens", tokens, TV_SPM_N);
    gb_arr(&f->g, "tokenizer.ggml.scores", YK_GGUF_F32, scores, TV_SPM_N, sizeof scores);
    gb_arr(&f->g, "tokenizer.ggml.token_type", YK_GGUF_I32, types, TV_SPM_N, sizeof types);
}

void tv_bpe(tv_file *f, const char *pre)
{
    static const char *const merges[] = {"t h", "th e", "\xc4\xa0 the", "e h"};
    static const char *const more[] = {"th", "the", "\xc4\xa0the", "eh", "hteh", "<|im_end|>"};
    const char *tokens[TV_BPE_N];
    int32_t types[TV_BPE_N];
    char bytes[256][3] = {{0}};
    for (uint32_t b = 0, n = 0; b < 256; b++) {
        const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        const uint32_t c = printable ? b : 0x100 + n++;
        if (c < 0x80) {
            bytes[b][0] = (char)c;
        } else {
            bytes[b][0] = (char)(0xc0 | c >> 6);
            bytes[b][1] = (char)(0x80 | (c & 0x3f));
        }
        tokens[b] = bytes[b];
    }
    for (int i = 256; i < TV_BPE_N; i++)
        tokens[i] = more[i - 256];
    for (int i = 0; i < TV_BPE_N; i++)
        types[i] = i == TV_BPE_EOS ? 3 : 1;
    tv_empty(f, "gpt2");
    gb_str(&f->g, "tokenizer.ggml.pre", pre);
    tv_strs(f, "tokenizer.ggml.tokens", tokens, TV_BPE_N);
    gb_arr(&f->g, "tokenizer.ggml.token_type", YK_GGUF_I32, types, TV_BPE_N, sizeof types);
    tv_strs(f, "tokenizer.ggml.merges", merges, 4);
    gb_u32(&f->g, "tokenizer.ggml.eos_token_id", TV_BPE_EOS);
}

void tv_image(tv_file *f)
{
    if (!f->image.p)
        f->image = gb_finish(&f->g);
}

void tv_open(tv_file *f, yk_gguf *gguf, yk_tokenizer **tok)
{
    yk_error err = {0};
    tv_image(f);
    if (yk_gguf_open_memory(gguf, f->image.p, f->image.n, true, &err) != YK_OK || yk_tokenizer_open(tok, gguf, &err) != YK_OK) {
        fprintf(stderr, "tok_vocab: %s\n", err.text);
        exit(1);
    }
}

void tv_free(tv_file *f)
{
    free(f->image.p);
    gb_free(&f->g);
    *f = (tv_file){0};
}

void tv_close(tv_file *f, yk_gguf *gguf, yk_tokenizer **tok)
{
    yk_tokenizer_close(tok);
    yk_gguf_close(gguf);
    tv_free(f);
}
