#!/usr/bin/env python3
"""Write the seeds of the GGUF fuzzer: one tiny valid model for each architecture and each way tensors may be laid out.

  make_gguf_corpus.py FOLDER

Width 8, two heads, one layer, ten tokens; values are small integers. Only the standard library is needed.
"""
import os
import struct
import sys

U32, I32, F32, BOOL, STR, ARR, U64 = 4, 5, 6, 7, 8, 9, 10
F32_T, F16_T = 0, 1
W, FF, NH, NKV, HD, V, E = 8, 8, 2, 1, 4, 10, 2


def s(x):
    b = x.encode()
    return struct.pack('<Q', len(b)) + b


def kv(key, t, v):
    if isinstance(t, tuple):
        item = s if t[1] == STR else lambda x: struct.pack('<f' if t[1] == F32 else '<i', x)
        return s(key) + struct.pack('<IIQ', ARR, t[1], len(v)) + b''.join(map(item, v))
    if t == STR:
        return s(key) + struct.pack('<I', t) + s(v)
    return s(key) + struct.pack('<I' + {U32: 'I', I32: 'i', F32: 'f', BOOL: '?', U64: 'Q'}[t], t, v)


class Model:
    def __init__(self, arch, gpt2=False):
        self.arch, self.kvs, self.ts, self.version, self.align = arch, [], [], 3, 32
        self.key('general.architecture', STR, arch)
        for k, v in (('context_length', 16), ('embedding_length', W), ('block_count', 1), ('feed_forward_length', FF),
                     ('attention.head_count', NH), ('attention.head_count_kv', NKV), ('attention.key_length', HD),
                     ('attention.value_length', HD)):
            self.hp(k, U32, v)
        self.hp('attention.layer_norm_rms_epsilon', F32, 1e-5)
        tk = 'tokenizer.ggml.'
        toks = ['<unk>', '<s>', '</s>', 'a', 'b', 'ab', 'c', 'd', 'abc', '\u2581']
        self.key(tk + 'model', STR, 'gpt2' if gpt2 else 'llama')
        self.key(tk + 'tokens', (ARR, STR), toks)
        self.key(tk + 'token_type', (ARR, I32), [2, 3, 3] + [1] * 7)
        if gpt2:
            self.key(tk + 'pre', STR, 'gpt-2')
            self.key(tk + 'merges', (ARR, STR), ['a b', 'ab c'])
        else:
            self.key(tk + 'scores', (ARR, F32), [0.0] * V)
        self.key(tk + 'bos_token_id', U32, 1)
        self.key(tk + 'eos_token_id', U32, 2)
        self.t('token_embd.weight', W, V)
        self.t('output_norm.weight', W)

    def key(self, k, t, v):
        self.kvs.append(kv(k, t, v))

    def hp(self, k, t, v):
        self.key(self.arch + '.' + k, t, v)

    def t(self, name, *ne, type=F32_T):
        n = 1
        for d in ne:
            n *= d
        ones = [1 + i % 3 for i in range(n)]
        raw = struct.pack('<%d%s' % (n, 'f' if type == F32_T else 'e'), *ones)
        self.ts.append((name, ne, type, raw))
        return self

    def b(self, name, *ne, **kw):
        return self.t('blk.0.' + name, *ne, **kw)

    def attn(self, qkv=True, type=F32_T):
        self.b('attn_norm.weight', W)
        if qkv:
            self.b('attn_q.weight', W, NH * HD, type=type).b('attn_k.weight', W, NKV * HD, type=type)
            self.b('attn_v.weight', W, NKV * HD, type=type)
        return self.b('attn_output.weight', NH * HD, W)

    def dense(self, norm='ffn_norm'):
        return self.b(norm + '.weight', W).b('ffn_gate.weight', W, FF).b('ffn_up.weight', W, FF).b('ffn_down.weight', FF, W)

    def moe(self, norm='ffn_norm', exps=True):
        self.hp('expert_count', U32, E)
        self.hp('expert_used_count', U32, 1)
        self.b(norm + '.weight', W).b('ffn_gate_inp.weight', W, E)
        if exps:
            self.b('ffn_gate_exps.weight', W, FF, E).b('ffn_up_exps.weight', W, FF, E).b('ffn_down_exps.weight', FF, W, E)
        return self

    def bytes(self):
        if self.align != 32:
            self.key('general.alignment', U32, self.align)
        b = b'GGUF' + struct.pack('<IQQ', self.version, len(self.ts), len(self.kvs)) + b''.join(self.kvs)
        data = b''
        for name, ne, t, raw in self.ts:
            b += s(name) + struct.pack('<I%dQIQ' % len(ne), len(ne), *ne, t, len(data))
            data += raw + bytes(-len(raw) % self.align)
        return b + bytes(-len(b) % self.align) + data


def seeds():
    m = Model('llama').attn(type=F16_T).dense().t('output.weight', W, V)
    m.hp('vocab_size', U32, V)
    yield 'llama', m
    m = Model('llama', gpt2=True).attn().dense().t('rope_freqs.weight', HD // 2)
    m.version, m.align = 2, 1
    yield 'llama-gpt2-v2-unaligned', m
    yield 'mixtral', Model('llama').attn().moe()
    m = Model('llama').attn().moe(exps=False)
    for e in range(E):
        m.b('ffn_gate.%d.weight' % e, W, FF).b('ffn_up.%d.weight' % e, W, FF).b('ffn_down.%d.weight' % e, FF, W)
    yield 'mixtral-separate', m
    yield 'mixtral-fused', Model('llama').attn().moe(exps=False).b('ffn_gate_up_exps.weight', W, 2 * FF, E).b(
        'ffn_down_exps.weight', FF, W, E)
    m = Model('qwen2').attn().dense()
    yield 'qwen2', m.b('attn_q.bias', NH * HD).b('attn_k.bias', NKV * HD).b('attn_v.bias', NKV * HD)
    m = Model('qwen2moe').attn().moe()
    m.hp('expert_feed_forward_length', U32, FF)
    m.hp('expert_shared_feed_forward_length', U32, 4)
    m.b('ffn_gate_inp_shexp.weight', W).b('ffn_gate_shexp.weight', W, 4).b('ffn_up_shexp.weight', W, 4)
    yield 'qwen2moe', m.b('ffn_down_shexp.weight', 4, W)
    yield 'qwen3', Model('qwen3').attn().dense().b('attn_q_norm.weight', HD).b('attn_k_norm.weight', HD)
    yield 'qwen3moe', Model('qwen3moe').attn().moe().b('attn_q_norm.weight', HD).b('attn_k_norm.weight', HD)
    yield 'olmoe', Model('olmoe').attn().moe().b('attn_q_norm.weight', NH * HD).b('attn_k_norm.weight', NKV * HD)
    m = Model('phi3').attn(qkv=False).b('attn_qkv.weight', W, (NH + 2 * NKV) * HD).b('ffn_norm.weight', W)
    m.hp('rope.scaling.attn_factor', F32, 1.25)
    m.b('ffn_up.weight', W, 2 * FF).b('ffn_down.weight', FF, W).t('rope_factors_long.weight', HD // 2)
    yield 'phi3', m.t('rope_factors_short.weight', HD // 2)
    m = Model('phimoe').attn().moe().t('output.weight', W, V).t('output.bias', V).t('output_norm.bias', W)
    m.b('attn_norm.bias', W).b('ffn_norm.bias', W).b('attn_q.bias', NH * HD).b('attn_k.bias', NKV * HD)
    yield 'phimoe', m.b('attn_v.bias', NKV * HD).b('attn_output.bias', W)
    m = Model('gpt-oss').attn().moe('post_attention_norm')
    m.hp('attention.sliding_window', U32, 4)
    m.hp('rope.scaling.type', STR, 'yarn')
    m.hp('rope.scaling.factor', F32, 4.0)
    m.hp('rope.scaling.original_context_length', U32, 8)
    m.b('attn_sinks.weight', NH).b('attn_output.bias', W).b('ffn_gate_inp.bias', E).b('ffn_gate_exps.bias', FF, E)
    yield 'gpt-oss', m.b('ffn_up_exps.bias', FF, E).b('ffn_down_exps.bias', W, E)


def main():
    out = sys.argv[1]
    os.makedirs(out, exist_ok=True)
    for name, m in seeds():
        with open(os.path.join(out, name + '.gguf'), 'wb') as f:
            f.write(m.bytes())


if __name__ == '__main__':
    main()
