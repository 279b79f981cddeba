#!/usr/bin/env python3
"""plan for models without weights on machines that are not here: text, json, svg, and the refusal of what does not go together."""
import json
import os
import re
import xml.dom.minidom

from harness import MODEL, good, main, path, refused, yoke

ROOT = os.environ.get('YOKE_SOURCE', '.')


def shape(name):
    return os.path.join(ROOT, 'partition/shapes', name + '.json')


def machine(name):
    return os.path.join(ROOT, 'partition/machines', name + '.json')


PLAN = ('plan', '-q', '--shape', shape('qwen3-30b-a3b'), '--machine', machine('rtx-4060-laptop'))


def test_text():
    text = good(*PLAN).out
    assert re.match(r'plan [0-9a-f]{16}: qwen3-30b-a3b, 48 layers', text), text
    assert 'cuda:0' in text and '\x1b' not in text, text
    for words in (r'^decode   \d+\.\d tok/s \(modelled\) at depth 0, .* at 4096$', r'^  decode is bound by CPU reads: \d+ % of the token \(',
                  r'^  prefill is bound by the (CPU|GPU|link).*: \d+ % of the time \(', r'^  10 GB/s more of memory bandwidth would give \d+\.\d tok/s \(\+\d+ %\)',
                  r'^  10 GB/s more of the link would give \d+ tok/s \(\+\d+ %\)', r'^why not \(modelled, tok/s\) .* depth 2048, prompt 512$'):
        assert re.search(words, text, re.M), (words, text)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and [y for y in lines if y != y.rstrip()] == [], text
    assert len(lines) <= 38 and next(i for i, y in enumerate(lines) if y.startswith('layers')) <= 28, text
    for name in ('this plan', 'whole layers (-ngl', '-cmoe', 'best -ncmoe', 'cache of', "Fiddler's rule", 'streamed', 'CPU only'):
        assert name in text, (name, text)
    assert re.search(r'^(\d+ of )?\d+-\d+ +cuda:0 +[Gc>]{24} +\d+ +\d+ +\d+ +[Gc>]{24} +\d+ +\d+ +\d+$', text, re.M), text
    assert good('plan', '-q', '-m', shape('qwen3-30b-a3b'), *PLAN[4:]).out == text
    assert good(*PLAN).out == text


def figures(text):
    """Shares of each line of the table of layers, of decode and prefill; shares in brackets after "is bound by"."""
    for y in text.splitlines():
        row = re.search(r'[Gc>]{24} +(\d+) +(\d+) +(\d+) +[Gc>]{24} +(\d+) +(\d+) +(\d+)$', y)
        if row:
            yield [int(x) for x in row.groups()[:3]]
            yield [int(x) for x in row.groups()[3:]]
        if ' is bound by ' in y:
            yield [int(x) for x in re.findall(r'(\d+) %', y)]


def test_figures():
    """No exponents, shares add up to 100, no line is too long: for all machines, and models of all kinds."""
    for m in sorted(os.listdir(os.path.join(ROOT, 'partition/machines'))):
        for s in ('llama2-70b', 'qwen3-235b-a22b', 'gpt-oss-20b'):
            text = good('plan', '-q', '--shape', shape(s), '--machine', machine(m[:-5])).out
            assert not re.search(r'\d\.?\d*e[+-]\d|nan|inf\b', text), text
            rows = list(figures(text))
            assert len(rows) >= 4 and all(sum(r) == 100 for r in rows), (rows, text)
            assert max(map(len, text.splitlines())) <= 100 and len(text.splitlines()) <= 42, text


def test_too_little_memory():
    big = ('plan', '-q', '--shape', shape('qwen3-235b-a22b'), '--machine', machine('rtx-3060ti-pcie3x4'))
    words = ' '.join(good(*big).out.split())
    need, ram, most = re.search(r'RAM is too small: it has (\d+\.\d) GiB, this takes (\d+\.\d) .* use weights of at most (\d+\.\d) GiB', words).group(2, 1, 3)
    assert float(ram) == 64 and float(need) > 120 and 60 < float(most) < 72, words
    assert 'RAM is too small' in json.loads(good(*big, '-o', 'json').out)['note']
    assert 'RAM is too small' in good(*big, '-o', 'svg').out and 'RAM is too small' not in good(*PLAN).out
    note = ' '.join(good(*PLAN, '--vram-budget', '100M').out.split())
    least = re.search(r'the budget of cuda:0, 100.0 MiB, holds nothing .*; from (\d+) MiB it would help', note).group(1)
    assert 'times as fast as the CPU alone' in good(*PLAN, '--vram-budget', least + 'M').out


def test_json():
    plan = json.loads(good(*PLAN, '-o', 'json', '--vram-budget', '6G').out)
    assert sum(plan['memory']['cuda:0'].values()) <= 6 << 30 and len(plan['layers']) == 48
    rows = {a['name']: a for a in plan['alternatives']}
    assert len(rows) == 8 and rows['CPU only']['decode_tps'] > 0, rows
    f16 = json.loads(good(*PLAN, '-o', 'json', '--type', 'F16').out)
    assert f16['memory']['host']['weights'] > 2 * plan['memory']['host']['weights'] and f16['model'] != plan['model']
    cpu = json.loads(good(*PLAN, '-o', 'json', '--device', 'cpu').out)
    assert list(cpu['memory']) == ['host'], cpu['memory']


def test_svg():
    for name in ('rtx-4090-desktop', 'ddr4-cpu-only', 'intel-integrated'):
        svg = good('plan', '-q', '--shape', shape('gpt-oss-120b'), '--machine', machine(name), '-o', 'svg').out
        root = xml.dom.minidom.parseString(svg).documentElement
        texts = [t.firstChild.data for t in root.getElementsByTagName('text') if t.firstChild]
        assert root.tagName == 'svg' and any('modelled' in t for t in texts), texts
        assert len(root.getElementsByTagName('rect')) > 3 * 36
        assert not any(re.search(r'\de[+-]\d', t) for t in texts), texts
        for t in root.getElementsByTagName('text'):  # nothing runs out of the picture: wide letters have two thirds of their size
            size = {'t': 15, 'h': 12, 's': 11, 'in': 9, 'on': 9, 'f': 10}[t.getAttribute('class')]
            text = t.firstChild.data if t.firstChild else ''
            assert float(t.getAttribute('x')) + len(text) * size * 0.62 < 960, text
        assert 'script' not in svg and 'href' not in svg
    good('plan', '-q', '-m', MODEL, '--machine', machine('rtx-4090-desktop'), '-o', 'svg')
    assert 'cuda:0' in good('plan', '-q', '-m', MODEL, '--machine', machine('rtx-4090-desktop')).out


def test_wrong_files():
    """One line with the path of the key."""
    def changed(file, keys, value):
        with open(file) as f:
            top = at = json.load(f)
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        if value is None:
            del at[keys[-1]]
        with open(path('changed.json'), 'w') as f:
            json.dump(top, f)
        return path('changed.json')
    link = ['devices', 0, 'link']
    for keys, value, words in ((link + ['to_device_bytes_per_s'], 500e9, 'to_device_bytes_per_s: 5e+11 is faster than the memory it reads'),
                               (link + ['to_host_bytes_per_s'], 500e9, 'to_host_bytes_per_s: 5e+11 is faster than the memory it writes'),
                               (link + ['both_to_host_bytes_per_s'], 20e9, 'both_to_host_bytes_per_s: 2e+10 is faster than copies one way'),
                               (link + ['to_device_bytes_per_s'], None, 'to_device_bytes_per_s: is missing'),
                               (['devices', 0, 'backend'], 'opencl', 'backend: "opencl" is not the backend of "cuda:0"')):
        file = changed(machine('rtx-4060-laptop'), keys, value)
        refused(3, [file, 'machine.' + keys[0] + '[0].', words], *PLAN[:4], '--machine', file)
    for keys, value, words in ((['format'], 2, 'format: 2 is not known'), (['n_layers'], None, 'n_layers: is missing'), (['n_embd'], -4, 'n_embd: -4 is out of'),
                               (['n_used'], 1000, 'n_used: 1000 is out of range'), (['type'], 'Q99', 'type: "Q99" is not known'),
                               (['n_kv_heads'], 7, 'n_kv_heads: 7 does not divide'), (['n_expert_ff'], None, 'n_expert_ff: is missing')):
        file = changed(shape('qwen3-30b-a3b'), keys, value)
        refused(3, [file, 'shape.' + words], 'plan', '--shape', file, *PLAN[4:])


def test_lost_flags():
    for flags, words in ((('-ngl', 99), '-ngl 99 lost: it takes'), (('-ot', 'exps=CUDA0', '-ncmoe', 8), '-ot exps=CUDA0 lost: it takes'),
                         (('-nkvo', '-ot', 'blk.0.attn=CUDA0'), '-nkvo lost: -ot blk.0.attn wants'), (('-ngl', 4, '--device', 'cpu'), '-ngl 4 lost: --device cpu')):
        r = yoke(*PLAN, *flags)
        assert r.code in (2, 4) and r.bytes == b'' and r.err.count('\n') == 1 and words in r.err, r


def test_flags_that_cost():
    slow = good(*PLAN, '-ngl', 5, '-ncmoe', 46).out
    assert '\n  -ngl and -ncmoe make this plan slower than it could be: leave them out\n' in slow, slow
    assert 'slower than it could be' not in good(*PLAN).out


def test_refusals():
    refused(2, ['--machine'], 'plan', '--shape', shape('llama2-13b'))
    refused(2, ['--shape', 'keep one'], *PLAN, '-m', MODEL)
    refused(2, ['--type'], 'plan', '-m', MODEL, '--type', 'F16')
    refused(2, ['Q17'], *PLAN, '--type', 'Q17')
    refused(2, ['--device cuda:7', "machine's file describes cuda:0"], *PLAN, '--device', 'cuda:7')
    refused(2, ['--device cuda', 'describes no device but the CPU'], *PLAN[:4], '--machine', machine('ddr4-cpu-only'), '--device', 'cuda')
    refused(3, ['shape.name'], 'plan', '--shape', machine('rtx-4090-desktop'), '--machine', machine('rtx-4090-desktop'))
    refused(3, ['absent.json'], 'plan', '--shape', 'absent.json', '--machine', machine('rtx-4090-desktop'))


main(globals())
