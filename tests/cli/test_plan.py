#!/usr/bin/env python3
"""profile, plan, --plan, --machine, --explain and the refusal of wrong files and devices."""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import time

from harness import MODEL, PROGRAM, good, main, path, refused, yoke

# The null device computes on the host and is there on every machine.
BASE = ('run', '-q', '-m', MODEL, '--ids', '1 393', '--print-ids', '-n', '4', '--temp', '0', '-c', '64', '-ub', '16')
PLAN = ('plan', '-q', '-m', MODEL, '--device', 'null', '-c', '64', '-ub', '16')


def write(name, value):
    os.makedirs(os.path.dirname(path(name)), exist_ok=True)
    with open(path(name), 'w') as f:
        f.write(value if isinstance(value, str) else json.dumps(value))
    return path(name)


machine_text = good('profile', '-q', '--quick', '-m', MODEL, '--device', 'null', '-o', '-').out
MACHINE = write('machine.json', machine_text)


def changed(text, keys, value):
    """A file with one value changed, or removed when value is None."""
    j = json.loads(text)
    at = j
    for key in keys[:-1]:
        at = at[key]
    if value is None:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return write('changed.json', j)


def test_profile():
    j = json.loads(machine_text)
    assert j['format'] == 1 and j['cpu']['threads'] >= 1 and j['cpu']['read_bytes_per_s'] > 1e8
    device = j['devices'][0]
    assert device['name'] == 'null:0' and device['same_silicon'] is True
    for lane in (j['cpu'], device):
        rates = lane['product_bytes_per_s']
        assert set(rates) == {'F32', 'Q4_K', 'Q5_K', 'Q6_K', 'Q8_0'}, rates  # F32: routers
        for row in rates.values():
            figures = [row[b] for b in ('1', '2-4', '5-8', '9-16', '17-32')]
            assert all(f > 1e3 for f in figures) and figures == sorted(figures, reverse=True), row
        assert set(lane['prefill_byte_tokens_per_s']) == set(rates)
    assert device['launch_ns'] > 0 and device['hand_off_ns'] > 0
    assert device['link']['to_device_bytes_per_s'] > 1e6 and device['link']['to_host_bytes_per_s'] > 1e6
    cpu = json.loads(good('profile', '-q', '--quick', '--device', 'cpu', '-t', 1, '-o', '-').out)
    assert cpu['devices'] == [] and cpu['cpu']['threads'] == 1 and set(cpu['cpu']['product_bytes_per_s']) == {'Q4_K', 'Q8_0', 'F16'}


def test_cache():
    shutil.rmtree(path('cache'), ignore_errors=True)
    first = good(*BASE, '--device', 'null').out
    files = glob.glob(path('cache/yoke/machine-*.json'))
    assert len(files) == 1, files
    with open(files[0]) as f:
        measured = f.read()
    assert good(*BASE, '--device', 'null').out == first
    with open(files[0]) as f:
        assert f.read() == measured  # not measured again
    with open(files[0], 'w') as f:
        f.write(measured[:100])  # a damaged one is
    good(*BASE, '--device', 'null')
    with open(files[0]) as f:
        assert json.loads(f.read())['devices'][0]['name'] == 'null:0'


def test_plan():
    text = good(*PLAN, '--machine', MACHINE).out
    assert re.match(r'plan [0-9a-f]{16}: yoke-tiny-mixtral, 4 layers', text) and 'null:0' in text and len(text.splitlines()) <= 50, text
    plan = good(*PLAN, '--machine', MACHINE, '-o', 'json').out
    assert good(*PLAN, '--machine', MACHINE, '-o', 'json').out == plan  # the same input, the same plan
    file = write('plan.json', plan)
    expected = good(*BASE, '--device', 'cpu').out
    assert good(*BASE, '--plan', file).out == expected
    r = good(*[a for a in BASE if a != '-q'], '--plan', file)
    assert re.search(r' on cpu \+ null:0, .*null:0 is the CPU itself', r.err), r
    explained = good(*[a for a in BASE if a != '-q'], '--plan', file, '--explain')
    assert explained.out == expected and text.splitlines()[0] in explained.err, explained
    made = good(*[a for a in BASE if a != '-q'], '--device', 'null', '--explain')  # on this machine, measured and kept
    for words in ('reads ', 'decode is bound by ', 'why not (modelled, tok/s)', 'this plan', 'whole layers (-ngl', 'best -ncmoe', 'CPU only'):
        assert made.out == expected and words in made.err, (words, made)
        assert words in good(*PLAN).out, words
    whole = good(*[a for a in BASE if a != '-q'], '--device', 'null', '--no-auto-partition')
    assert whole.out == expected and 'everything on null:0' in whole.err, whole
    refused(4, ['null:0', 'budget of 4194304'], *BASE, '--device', 'null', '--no-auto-partition', '--vram-budget', '4M')
    small = good(*[a for a in BASE if a != '-q'], '--device', 'null', '--machine', MACHINE, '--vram-budget', '64K')
    assert small.out == expected and 'CPU only: the budget of null:0' in small.err, small


def layers_of(*flags):
    return json.loads(good(*PLAN, '--machine', MACHINE, '-o', 'json', *flags).out)['layers']


def test_constraints():
    """llama.cpp's flags bind the planner, or are refused by name."""
    machine = ('--machine', MACHINE)
    expected = good(*BASE, '--device', 'cpu').out
    resident = [y['attn_home'] != 'host' and all(s['home'] != 'host' for s in y['slices']) for y in layers_of('-ngl', '3')]
    assert resident == [False, False, True, True], resident  # the head is the third
    on_host = [all(s['home'] == 'host' for s in y['slices']) for y in layers_of('-ncmoe', '2')]
    assert on_host[:2] == [True, True], on_host
    assert all(y['attn_home'] == 'host' for y in layers_of('-nkvo'))
    assert all(s['home'] == 'host' for y in layers_of('-ot', 'ffn_.*_exps=CPU') for s in y['slices'])
    for flags in (('-ngl', '2'), ('-ncmoe', '4', '--explain'), ('-ot', 'blk.0.ffn=CPU'), ('-ngl', '1', '-nkvo')):
        assert good(*BASE, '--device', 'null', *machine, *flags).out == expected, flags
    refused(2, ['-ngl 2', '--device'], *BASE, '-ngl', '2')
    refused(2, ['-ngl 2', 'asked for'], *BASE, '--device', 'cpu', '-ngl', '2')
    refused(2, ['-ot', 'REGEX=DEVICE'], *BASE, '--device', 'null', *machine, '-ot', 'exps')
    refused(2, ['-ot', 'cuda:7'], *BASE, '--device', 'null', *machine, '-ot', 'exps=cuda:7')
    refused(2, ['--no-auto-partition', '-ngl'], *BASE, '--device', 'null', '--no-auto-partition', '-ngl', '2')
    refused(4, ['-ngl 5', 'budget', 'at most -ngl'], *BASE, '--device', 'null', *machine, '--vram-budget', '4M', '-ngl', '5')
    refused(2, ['a plan is given'], *BASE, '--plan', write('plan.json', good(*PLAN, *machine, '-o', 'json').out), '-ngl', '2')


def test_wrong_plans():
    plan = good(*PLAN, '--machine', MACHINE, '-o', 'json').out
    slices = json.loads(plan)['layers'][1]['slices']
    for keys, value, words in (
            (['layers'], None, ['plan.layers: is missing']),
            (['layers'], json.loads(plan)['layers'][:2], ['plan.layers', 'the model has 4']),
            (['layers', 1, 'slices'], slices + slices[:1], ['plan.layers[1].slices[%d].units' % len(slices), 'already']),
            (['layers', 1, 'slices'], slices[1:], ['plan.layers[1].slices', 'in no slice']),
            (['layers', 1, 'attn_home'], 'cuda:9', ['cuda:9']),
            (['model', 'id'], '0123456789abcdef', ['plan.model.id', 'make a new plan']),
            (['format'], 99, ['plan.format'])):
        file = changed(plan, keys, value)
        r = yoke(*BASE, '--plan', file)
        assert r.code == 3 and r.bytes == b'' and r.err.count('\n') == 1, r
        for word in words:
            assert word in r.err, (word, r)
    refused(3, [path('changed.json'), 'plan'], *BASE, '--plan', write('changed.json', plan[:200]))
    refused(3, ['plan.memory.null:0', 'budget of 65536'], *BASE, '--plan', write('plan.json', plan), '--vram-budget', '64K')
    refused(3, [path('absent.json')], *BASE, '--plan', path('absent.json'))
    refused(3, ['plan.layers'], 'perplexity', '-m', MODEL, '-f', MODEL, '-c', 64, '--chunks', 1, '--plan', changed(plan, ['layers'], None))


def test_wrong_machines():
    for keys, value, word in (
            (['cpu', 'threads'], 0, 'machine.cpu.threads'),
            (['cpu'], None, 'machine.cpu: is missing'),
            (['devices', 0, 'name'], 'null', 'machine.devices[0].name'),
            (['devices', 0, 'link', 'to_device_bytes_per_s'], -1, 'machine.devices[0].link.to_device_bytes_per_s'),
            (['format'], 2, 'machine.format'),
            (['format'], None, 'machine.format: is missing'),
            (['devices', 0, 'memory_bytes'], -5, 'machine.devices[0].memory_bytes'),
            (['devices', 0, 'backend'], 'floppy', 'machine.devices[0].backend'),
            (['cpu', 'product_bytes_per_s', 'Q4_K', '1'], 1e14, 'machine.cpu.product_bytes_per_s.Q4_K.1'),
            (['cpu', 'product_bytes_per_s', 'Q4_K', '2-4'], 1e14, 'machine.cpu.product_bytes_per_s.Q4_K.2-4')):
        file = changed(machine_text, keys, value)
        for command in (PLAN, BASE):
            refused(3, [file, word], *command, '--machine', file)
    refused(3, ['directory'], *PLAN, '--machine', path('.'))


def test_interrupted_profile():
    """Ctrl-C keeps the file of before, and nothing beside it."""
    old = write('kept/old.json', 'as it was')
    for wait in (0.05, 0.5, 1):
        p = subprocess.Popen([PROGRAM, 'profile', '--device', 'cpu', '-o', old], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(wait)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        assert p.returncode in (130, -signal.SIGINT) and out == b'', (p.returncode, out, err)  # the second: before it listened
        with open(old) as f:
            assert f.read() == 'as it was' and os.listdir(path('kept')) == ['old.json']


def test_devices_that_are_not_there():
    for name, word in (('floppy', 'unknown backend'), ('null:7', 'null has 1'), ('opencl:x', 'opencl:x'), ('cuda:99', 'cuda:99')):
        refused(2, [name, word], *BASE, '--device', name)
        refused(2, [name, word], *PLAN[:4], '--device', name)
        refused(2, [name, word], 'profile', '--quick', '--device', name, '-o', path('x'))
    j = json.loads(good('devices', '-o', 'json').out)
    for d in j['devices'][1:]:
        assert d['usable'] or d['why'], d
    assert {'cuda', 'opencl', 'null'} == {d['backend'] for d in j['devices'][1:]}


def module_folder(content):
    """A folder with a yoke-null.so of its own; None: a pipe."""
    shutil.rmtree(path('modules'), ignore_errors=True)
    os.mkdir(path('modules'))
    file = path('modules/yoke-null.so')
    if content is None:
        os.mkfifo(file)
    else:
        with open(file, 'wb') as f:
            f.write(content)
    return path('modules')


def test_wrong_modules():
    built = os.path.join(os.path.dirname(PROGRAM), '..', '..', 'gpu', 'yoke-null.so')
    with open(built, 'rb') as f:
        module = f.read()
    try:
        for content, word in ((b'not a module', 'yoke-null.so'), (b'', 'yoke-null.so'), (None, 'is no file'), (module[:1000], 'cut short'),
                              (module[:64], 'yoke-null.so'), (module[:len(module) // 4], 'cut short')):
            os.environ['YOKE_MODULE_PATH'] = module_folder(content)
            refused(2, ['null', word], *BASE, '--device', 'null', timeout=30)
            assert good(*BASE, timeout=30).out == good(*BASE, '--device', 'cpu').out  # the default goes on without it
        os.environ['YOKE_MODULE_PATH'] = module_folder(module)
        good(*BASE, '--device', 'null', '--machine', MACHINE)
    finally:
        del os.environ['YOKE_MODULE_PATH']


def test_budget_above_the_memory():
    expected = good(*BASE, '--device', 'cpu').out
    for memory in ('100000', '3000000', '9000000'):
        device = 'null:compute,mem=' + memory
        assert good(*BASE, '--device', device, '--machine', MACHINE, '--vram-budget', '1G').out == expected


def test_names_are_one_line():
    plan = good(*PLAN, '--machine', MACHINE, '-o', 'json').out
    file = changed(plan, ['note'], 'two\nlines\x1b[31m')
    r = good(*[a for a in BASE if a != '-q'], '--plan', file, '--explain')
    assert 'two?lines?[31m' in r.err and '\x1b' not in r.err, r
    many = changed(plan, ['memory'], {'cuda:%d' % i: {} for i in range(9)})
    refused(3, ['plan.memory', 'cuda:8', 'too many'], *BASE, '--plan', many)


def test_files_that_cannot_be_written():
    base = [*BASE, '--device', 'null', '--machine', MACHINE]
    expected = good(*base).out
    r = yoke(*base, '--trace', '/dev/full')
    assert r.code == 1 and r.out == expected and 'trace' in r.err and r.err.count('\n') == 1, r
    trace = path('trace.json')
    r = subprocess.run(['sh', '-c', 'ulimit -f 2; exec "$@"', 'sh', PROGRAM, *base, '--trace', trace], capture_output=True, timeout=60)
    assert r.returncode == 1 and b'trace' in r.stderr and r.stdout.decode() == expected, r
    assert not glob.glob(trace + '*')
    for flag in ('--trace', '--logits'):
        refused(2, [flag + ' FILE'], *base, flag, '-', cwd=path('.'))
    refused(2, ['-o FILE'], 'synth', '--shape', 'llama-1b', '-o', '-', cwd=path('.'))
    assert not os.path.exists(path('-'))


def test_pipes():
    shutil.rmtree(path('cache'), ignore_errors=True)
    good(*BASE, '--device', 'null')
    file, = glob.glob(path('cache/yoke/machine-*.json'))
    os.remove(file)
    os.mkfifo(file)
    good(*BASE, '--device', 'null', timeout=60)  # neither read nor written
    p = subprocess.Popen([PROGRAM, *BASE, '--plan', file], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(0.5)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert (p.returncode, out, err) == (130, b'', b''), (p.returncode, err)
    shutil.rmtree(path('cache'))


main(globals())
