#!/usr/bin/env python3
"""Expected word splits of the pre-tokenizers, computed with the `regex` package (pip install regex).

    pretok_oracle.py > tests/data/pretok_splits.json         what the test reads
    pretok_oracle.py -n 5000 -s 7 > /some/where.json         more random texts, another seed

The patterns are the ones of the models' tokenizer.json files, written as they stand there and independently of
src/model/pretok.c. Each pattern cuts every piece that the ones before it left into matches and what lies between. Random texts
use characters whose category is the same in Unicode 3.2 and in Python's table, so that a newer table changes nothing.

Output: {"texts": [text...], "splits": {name: [[bytes of word 0, bytes of word 1, ...] for each text]}}.
"""
import argparse
import json
import random
import sys
import unicodedata

import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)"
          r"|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{CONTRACTION}"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# letters of deepseek-llm's tokenizer.json
DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-"
    "\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-"
    "\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-"
    "\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-"
    "\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-"
    "\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943")
ASCII_SIGNS = r"!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~"

PATTERNS = {
    "gpt-2": [GPT2],
    "llama-bpe": [LLAMA3],
    "smaug-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "qwen35": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
               r"|\s+(?!\S)|\s+"],
    "gpt-4o": [O200K],
    "tekken": [O200K.replace(CONTRACTION, "").replace(r"\p{N}{1,3}", r"\p{N}")],
    "deepseek-llm": [r"[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+",
                     "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+\Z",
                     "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+"],
    "deepseek-coder": [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"],
    "deepseek-v3": [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                    rf"[{ASCII_SIGNS}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
                    r"|\s*[\r\n]+|\s+(?!\S)|\s+"],
    "falcon": [r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
    "starcoder": [r"\p{N}", GPT2],
    "bailingmoe": [r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"],
    "seed-coder": [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)"
                   r"|\s+"],
    "minicpm5": [r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}

TEXTS = [
    "Hello, world!", "  Hello   world  ", "I'm you're he'll WE'VE they'D it'S 'Tis rock'n'roll 'ſ 'K o'clock",
    "''''s's 's's",
    "123456789 12 1 1234 3.14159 1,000,000 ½ ² ٣٤٥٦ Ⅷ 四", "a1b22c333d4444",
    "foo_bar.baz(qux)[0] += {x: -1};\n\treturn !y;\n",
    "line one\nline two\r\nline three\r\rfour\n\n\n  five\n \n \t\n six", "\n", "\n\n", "\r\n", "\t", " ",
    "  ", "   ", " \n", "\n ",
    " \t \r\n  x",
    "tabs\t\tand  spaces \t mixed\u00a0nbsp\u2003em\u3000wide\u2028ls\u0085nel\u180emvs\u200bzwsp\u1680ogham",
    "über naïve façade Ångström ÉCOLE Straße ǅungla ʰmod e\u0301 a\u0300\u0301b", "Привет, мир! Ёлка ещё",
    "Γειά σου Κόσμε ΑΒΓ αβγ",
    "你好，世界。我想在apple工作1314151天～", "こんにちは世界カタカナひらがな、テスト。", "안녕하세요 세계 여러분", "مرحبا بالعالم ١٢٣", "שלום עולם",
    "नमस्ते दुनिया हिन्दी", "សួស្តីពិភពលោក", "ภาษาไทยง่ายนิดเดียว", "🚀 (normal) 😶‍🌫️ (emoji) ✅ 👩‍👩‍👧 🇩🇪",
    "$100 + €20 = £15.50 ^~`|<>",
    "CamelCaseHTTPServerURL iPhone XMLHttpRequest aB Ab AB ab", "https://example.com/a/b?c=d&e=f#g user@mail.org",
    "<|im_start|>user\nhi<|im_end|>\n", "'", "''", "' '", " '", "don't", "DON'T", "dOn'T", "x'\ny",
    "//\n//\r\n/", "a/b//c///\n/",
    "...!!!???\n\n!!!\r\n", " ...\n", "  !!\n\n  ", "\u0301\u0300 \u0301a", "a\u0301'S B\u0301'll",
    "\x00\x01\x02abc\x7f\x1b[0m",
    "a\x00b\x00\x00c 1\x001", "　全角　スペース", "١٢٣٤ १२३४ ௧௨", "ªº ⁿ ₁₂ ⓐ ℌℕ Ⅳ",
    "def f(x):\n    if x > 10:\n        return x ** 2\n    else:\n"
    "        return None\n", "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 0x1F); }\n", "end space ",
    "end newline\n", "end spaces   ",
    "x  \n  y", "x \t y", "3 33 333 3333 33333 333333",
    "a" * 70, " " * 70, "\n" * 20, "1" * 20, "-" * 40, "é" * 30, "一" * 20, " a" * 15,
]


def split(patterns, text):
    pieces = [text]
    for p in patterns:
        r, cut = regex.compile(p), []
        for piece in pieces:
            done = 0
            for m in r.finditer(piece):
                if m.start() > done:
                    cut.append(piece[done:m.start()])
                cut.append(m.group())
                done = m.end()
            if done < len(piece):
                cut.append(piece[done:])
        pieces = cut
    assert ''.join(pieces) == text
    return pieces


def alphabet():
    """Characters by category that no version since 3.2 has moved."""
    old, by = unicodedata.ucd_3_2_0, {}
    for c in list(range(0x3100)) + list(range(0x4e00, 0x4e40)) + list(range(0xac00, 0xac20)) + list(range(0xf900, 0x10000)) + \
            list(range(0x10300, 0x10450)) + list(range(0x1d400, 0x1d500)):
        k = unicodedata.category(chr(c))
        if k not in ('Cn', 'Cs', 'Co') and old.category(chr(c)) == k:
            by.setdefault(k, []).append(chr(c))
    return by


def random_text(rng, by):
    common = [" ", " ", "\n", "\r", "\t", "'", "s", "'ll", "'S", "1", "/", ".", "a", "B", "the", "  ", "一", "か", "\u0301"]
    kinds = sorted(by)
    out = []
    for _ in range(rng.randrange(1, 40)):
        out.append(rng.choice(common) if rng.random() < 0.6 else rng.choice(by[rng.choice(kinds)]))
    return ''.join(out)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('-n', type=int, default=60, help='random texts')
    ap.add_argument('-s', type=int, default=1, help='seed')
    args = ap.parse_args()
    rng, by = random.Random(args.s), alphabet()
    texts = TEXTS + [random_text(rng, by) for _ in range(args.n)]
    out = {n: [[len(w.encode()) for w in split(p, t)] for t in texts] for n, p in PATTERNS.items()}
    json.dump({'texts': texts, 'splits': out}, sys.stdout, separators=(',', ':'))
    sys.stdout.write('\n')


main()
