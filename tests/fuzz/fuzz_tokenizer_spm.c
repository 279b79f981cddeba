/* Fuzz target: SentencePiece tokenizers. First byte even: the rest is text for a fixed vocabulary, and decoding must give it
 * back; odd: the rest is a vocabulary and a text (tok_fuzz.h). */
#include "tests/fuzz/tok_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tv_file file;
    static yk_gguf gguf;
    static yk_tokenizer *tok;
    if (!tok) {
        tv_spm(&file);
        tv_open(&file, &gguf, &tok);
    }
    if (size == 0)
        return 0;
    if (data[0] & 1)
        tok_fuzz_vocab("llama", NULL, data + 1, size - 1);
    else
        tok_fuzz_text(tok, data + 1, size - 1, true);
    return 0;
}
