#!/usr/bin/env python3
"""plan for models without weights on machines that are not here: text, json, svg, and the refusal of what does not go together."""
import json
import os
import re
import xml.dom.minidom

from harness import MODEL, good, main, refused

ROOT = os.environ.get('YOKE_SOURCE', '.')


def shape(name):
    return os.path.join(ROOT, 'partition/shapes', name + '.json')


def machine(name):
    return os.path.join(ROOT, 'partition/machines', name + '.json')


PLAN = ('plan', '-q', '--shape', shape('qwen3-30b-a3b'), '--machine', machine('rtx-4060-laptop'))


def test_text():
    text = good(*PLAN).out
    assert re.match(r'plan [0-9a-f]{16}: qwen3-30b-a3b, 48 layers', text), text
    assert 'cuda:0' in text and '\x1b' not in text and 'is bound by' in text, text
    for name in ('this plan', 'whole layers (-ngl', '-cmoe', 'best -ncmoe', 'cache of', "Fiddler's rule", 'streamed', 'CPU only'):
        assert name in text, (name, text)
    assert re.search(r'^0(-\d+)? .* [Gc>]{36}  [Gc>]{36}$', text, re.M), text
    assert good('plan', '-q', '-m', shape('qwen3-30b-a3b'), *PLAN[4:]).out == text
    assert good(*PLAN).out == text


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
        assert 'script' not in svg and 'href' not in svg
    good('plan', '-q', '-m', MODEL, '--machine', machine('rtx-4090-desktop'), '-o', 'svg')
    assert 'cuda:0' in good('plan', '-q', '-m', MODEL, '--machine', machine('rtx-4090-desktop')).out


def test_refusals():
    refused(2, ['--machine'], 'plan', '--shape', shape('llama2-13b'))
    refused(2, ['--shape', 'keep one'], *PLAN, '-m', MODEL)
    refused(2, ['--type'], 'plan', '-m', MODEL, '--type', 'F16')
    refused(2, ['Q17'], *PLAN, '--type', 'Q17')
    refused(2, ['cuda:7'], *PLAN, '--device', 'cuda:7')
    refused(3, ['shape.name'], 'plan', '--shape', machine('rtx-4090-desktop'), '--machine', machine('rtx-4090-desktop'))
    refused(3, ['absent.json'], 'plan', '--shape', 'absent.json', '--machine', machine('rtx-4090-desktop'))


main(globals())
