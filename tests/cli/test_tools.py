#!/usr/bin/env python3
"""inspect, tokenize, perplexity, bench, devices and synth: the forms that scripts read."""
import csv
import io
import json
import math
import os
import re
import stat
import subprocess

from harness import MODEL, SOURCE, good, main, path, refused

STORY = SOURCE + '/models/heldout_story.txt'


def test_tokenize():
    assert good('tokenize', '-m', MODEL, '-p', 'Once upon a time').bytes == b'1 393 394 261 374\n'
    assert good('tokenize', '-m', MODEL, '-p', 'Once upon a time', '--no-special').bytes == b'393 394 261 374\n'
    assert good('tokenize', '-m', MODEL, '-p', '').bytes == b'1\n'
    assert good('tokenize', '-m', MODEL, '-p', '', '--no-special').bytes == b'\n'
    special = good('tokenize', '-m', MODEL, '-p', 'a</s>b').out.split()
    plain = good('tokenize', '-m', MODEL, '-p', 'a</s>b', '--no-parse-special').out.split()
    assert '2' in special and '2' not in plain
    text = 'Zoë said:\n "a\tb" \xff'.encode('latin-1') + b'\x00\xf0\x9f\x98\x80 end\n'
    with open(path('text'), 'wb') as f:
        f.write(text)
    from_file = good('tokenize', '-m', MODEL, '-f', path('text')).out
    assert from_file == good('tokenize', '-m', MODEL, '-f', '-', stdin=text).out == good('tokenize', '-m', MODEL, stdin=text).out
    assert re.fullmatch(r'\d+( \d+)*\n', from_file) and len(from_file.split()) > 10
    with open(path('text2'), 'wb') as f:
        f.write(text[:-1])
    assert good('tokenize', '-m', MODEL, '-f', path('text2')).out != from_file  # the last newline counts
    refused(3, [path('none')], 'tokenize', '-m', MODEL, '-f', path('none'))
    refused(2, ['-p', '-f'], 'tokenize', '-m', MODEL, '-p', 'x', '-f', path('text'))


def test_inspect():
    j = json.loads(good('inspect', '-m', MODEL, '-o', 'json').out)
    info = j['info']
    assert info['architecture'] == 'llama' and info['n_layers'] == 4 and info['n_experts'] == 8 and info['n_experts_used'] == 2
    assert info['n_vocab'] == 2048 and info['n_ctx_train'] == 512 and info['file_bytes'] == os.path.getsize(MODEL)
    assert len(j['tensors']) == info['n_tensors'] == 43 and len(j['metadata']) == info['n_meta']
    assert info['n_params'] == sum(math.prod(t['dims']) for t in j['tensors'])
    assert info['n_bytes'] == sum(t['bytes'] for t in j['tensors'])
    assert j['metadata']['llama.block_count'] == {'type': 'u32', 'value': 4}
    tokens = j['metadata']['tokenizer.ggml.tokens']
    assert tokens['type'] == '[str]' and tokens['n'] == 2048 and len(tokens['value']) == 8
    full = json.loads(good('inspect', '-m', MODEL, '-o', 'json', '--full').out)
    assert len(full['metadata']['tokenizer.ggml.tokens']['value']) == 2048
    text = good('inspect', MODEL).out
    for word in ('llama', 'blk.0.ffn_down_exps.weight', 'Q4_K', 'tokenizer.ggml.tokens', '2048 elements'):
        assert word in text, word
    assert not re.search(r'[\x00-\x09\x0b-\x1f\x7f]', good('inspect', MODEL, '--full').out)
    assert len(json.loads(good('inspect', '--vocab-only', MODEL, '-o', 'json').out)['metadata']) == info['n_meta']


def test_perplexity():
    r = good('perplexity', '-q', '-m', MODEL, '-f', STORY, '-c', 256, '--chunks', 3, '-o', 'json')
    j = json.loads(r.out)
    ids = good('tokenize', '-m', MODEL, '-f', STORY).out.split()
    assert j['n_tokens'] == len(ids) and j['chunks'] == 3 and j['n_scored'] == 3 * 127 and 1 < j['ppl'] < 10, j
    small = json.loads(good('perplexity', '-q', '-m', MODEL, '-f', STORY, '-c', 256, '--chunks', 3, '-b', 5, '-ub', 3, '-o', 'json').out)
    assert abs(small['ppl'] / j['ppl'] - 1) < 1e-3  # steps of another size change rounding only
    assert 'perplexity' in good('perplexity', '-q', '-m', MODEL, '-f', STORY, '-c', 64, '--chunks', 1).out
    refused(2, ['-f FILE'], 'perplexity', '-m', MODEL)
    refused(2, [str(len(ids)), '5000'], 'perplexity', '-m', MODEL, '-f', STORY, '-c', 5000)


def test_perplexity_by_hand():
    """One chunk, from the logits that run gives for the same ids."""
    import struct
    n_ctx, n_vocab = 16, 2048
    ids = [int(i) for i in good('tokenize', '-m', MODEL, '-f', STORY, '--no-parse-special').out.split()][:n_ctx]
    nll = []
    for p in range(n_ctx // 2, n_ctx - 1):
        good('run', '-q', '-m', MODEL, '--ids', ' '.join(map(str, [1] + ids[1:p + 1])), '-n', 1, '--logits', path('row'), '-c', 64)
        with open(path('row'), 'rb') as f:
            row = struct.unpack('<%df' % n_vocab, f.read())
        top = max(row)
        nll.append(math.log(sum(math.exp(v - top) for v in row)) + top - row[ids[p + 1]])
    j = json.loads(good('perplexity', '-q', '-m', MODEL, '-f', STORY, '-c', n_ctx, '--chunks', 1, '-o', 'json').out)
    assert j['n_scored'] == len(nll) and abs(j['ppl'] / math.exp(sum(nll) / len(nll)) - 1) < 1e-3, (j, nll)


def test_bench():
    args = ('bench', '-q', '-m', MODEL, '-p', '8,4', '-n', '3', '-pg', '4,2', '-d', '0,5', '-t', '1,2', '-r', 2)
    rows = json.loads(good(*args, '-o', 'json').out)
    assert len(rows) == 4 * 2 * 2
    keys = ('n_prompt n_gen n_depth n_threads avg_ts stddev_ts samples_ts avg_ns stddev_ns samples_ns model_filename model_type model_size '
            'model_n_params version bytes_per_token roofline_share device plan_id isa').split()
    for row in rows:
        assert not [k for k in keys if k not in row], row
        assert len(row['samples_ts']) == len(row['samples_ns']) == 2
        assert abs(row['avg_ts'] - sum(row['samples_ts']) / 2) <= 1e-6 * row['avg_ts'] and row['avg_ts'] > 0
        for ns, ts in zip(row['samples_ns'], row['samples_ts']):
            assert abs(ts * ns / 1e9 - row['n_prompt'] - row['n_gen']) < 1e-6
        decode = row['n_gen'] > 0 and row['n_prompt'] == 0
        assert (row['roofline_share'] is not None) == decode
        if decode:
            assert abs(row['roofline_share'] - row['bytes_per_token'] * row['avg_ts'] / row['read_rate']) < 1e-3 * row['roofline_share']
            assert 0 < row['roofline_share'] < 1.5
    assert {(r['n_prompt'], r['n_gen'], r['n_depth'], r['n_threads']) for r in rows} == {
        (p, n, d, t) for p, n in ((8, 0), (4, 0), (0, 3), (4, 2)) for d in (0, 5) for t in (1, 2)}
    few = ('bench', '-q', '-m', MODEL, '-p', '8', '-n', '3', '-pg', '4,2', '-d', '5', '-t', '1', '-r', 1)
    table = list(csv.DictReader(io.StringIO(good(*few, '-o', 'csv').out)))
    assert len(table) == 3 and float(table[0]['avg_ts']) > 0 and table[0]['n_prompt'] == '8'
    md = good(*few).out.splitlines()
    assert len(md) == 3 + 2 and md[0].startswith('| model |'), md
    for name in ('pp8 @ d5', 'tg3 @ d5', 'pp4+tg2 @ d5'):
        assert sum('| %s |' % name in line for line in md) == 1, (name, md)


def test_devices():
    j = json.loads(good('devices', '-o', 'json').out)
    cpu = j['devices'][0]
    assert cpu['name'] == 'cpu' and cpu['cores'] >= 1 and cpu['threads'] >= cpu['cores'] and cpu['memory_available_bytes'] > 0
    assert re.search(r'^cpu +\S', good('devices').out)


def test_synth():
    listed = good('synth', '--list').out
    for name in ('mixtral-8x7b', 'qwen3-30b-a3b', 'llama-1b', 'llama2-13b', 'gpt-oss-20b', 'Q4_K_M', 'F16'):
        assert '  %s\n' % name in listed, name
    refused(2, ['shape'], 'synth')
    refused(2, ["'llama-9z'", 'llama-1b'], 'synth', 'llama-9z', 'F16', '-o', path('x'))
    refused(2, ['type', 'Q4_0'], 'synth', 'llama-1b', '-o', path('x'))
    refused(2, ["'Q9'"], 'synth', 'llama-1b', 'Q9', '-o', path('x'))
    refused(2, ['-o FILE'], 'synth', 'llama-1b', 'Q4_0')
    refused(2, ['one too many'], 'synth', 'llama-1b', 'Q4_0', '--type', 'F16', '-o', path('x'))
    refused(1, ['no/such'], 'synth', 'llama-1b', 'Q4_0', '--layers', 1, '-o', path('no/such/file'))
    os.mkfifo(path('fifo'))
    with subprocess.Popen(['timeout', '20', 'cat', path('fifo')], stdout=subprocess.DEVNULL):
        refused(1, ['fifo'], 'synth', 'llama-1b', 'Q4_0', '--layers', 1, '-o', path('fifo'))
    assert stat.S_ISFIFO(os.lstat(path('fifo')).st_mode)
    file = path('small.gguf')
    good('synth', 'llama-1b', '--type', 'Q4_0', '--layers', 1, '-o', file)
    info = json.loads(good('inspect', file, '-o', 'json').out)['info']
    assert info['n_layers'] == 1 and info['architecture'] == 'llama'
    assert len(good('run', '-q', '-m', file, '--ids', '1 5', '-n', 2, '--print-ids', '--ignore-eos', '-c', 16).out.split()) == 2
    os.unlink(file)


main(globals())
