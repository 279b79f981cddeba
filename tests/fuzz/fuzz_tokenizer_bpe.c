/* Fuzz target: byte-level BPE. The first byte chooses a pre-tokenizer; even: the rest is text for a fixed vocabulary, and
 * decoding must give it back; odd: the rest is a vocabulary and a text (tok_fuzz.h). */
#include "tests/fuzz/tok_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const pres[] = {"gpt-2",      "llama-bpe",    "qwen2",          "qwen35",      "gpt-4o",
                                       "tekken",     "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon",
                                       "bailingmoe", "seed-coder",   "minicpm5",       "default"};
    enum { N = sizeof pres / sizeof pres[0] };
    static tv_file files[N];
    static yk_gguf ggufs[N];
    static yk_tokenizer *toks[N];
    if (size == 0)
        return 0;
    const int k = (data[0] >> 1) % N;
    if (data[0] & 1) {
        tok_fuzz_vocab("gpt2", pres[k], data + 1, size - 1);
        return 0;
    }
    if (!toks[k]) {
        tv_bpe(&files[k], pres[k]);
        tv_open(&files[k], &ggufs[k], &toks[k]);
    }
    tok_fuzz_text(toks[k], data + 1, size - 1, true);
    return 0;
}
