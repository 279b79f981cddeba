#!/usr/bin/env python3
"""yoke run: the fixed forms, where text begins and ends, and output that cannot be written."""
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import time

from harness import MODEL, PROGRAM, SOURCE, good, main, path, refused, yoke

with open(SOURCE + '/models/expected.json') as f:
    EXPECTED = json.load(f)['files'][os.path.basename(MODEL)]
N_VOCAB = 2048
# Greedy choices are compared up to the first one with a gap that rounding may close.
SAFE_GAP = 0.2


def greedy(*args, **kw):
    return good('run', '-q', '-m', MODEL, '--temp', '0', *args, **kw)


def safe_ids(p):
    return p['new_ids'][:next((i for i, gap in enumerate(p['gaps']) if gap < SAFE_GAP), len(p['gaps']))]


def test_expected_ids():
    compared = 0
    for p in EXPECTED['prompts']:
        ids = greedy('-p', p['prompt'], '-n', 40, '--print-ids').out
        assert re.fullmatch(r'\d+( \d+)*\n', ids), ids
        ids = [int(i) for i in ids.split()]
        safe = safe_ids(p)[:40]
        assert ids[:len(safe)] == safe, p['prompt']
        compared += len(safe)
    assert compared >= 50, 'only %d ids are safe to compare' % compared


def test_text_is_the_ids():
    """Text is the pieces of the vocabulary in order."""
    metadata = json.loads(good('inspect', '-m', MODEL, '--full', '-o', 'json').out)['metadata']
    pieces = metadata['tokenizer.ggml.tokens']['value']
    for prompt in ('Once upon a time', 'Tell me a story about a fox.'):
        ids = [int(i) for i in greedy('-p', prompt, '-n', 60, '--print-ids').out.split()]
        words = [pieces[i] for i in ids if i not in (1, 2)]
        text = ''.join(chr(int(w[3:5], 16)) if re.fullmatch('<0x..>', w) else w.replace('\u2581', ' ') for w in words)
        assert greedy('-p', prompt, '-n', 60).out == text and len(text) > 100


def test_stops_at_the_end():
    found = 0
    for prompt in ('Tell me a story about a fox.', 'Tell me a story.', 'Once upon a time'):
        ids = [int(i) for i in greedy('-p', prompt, '--print-ids').out.split()]
        if ids[-1] not in (1, 2):
            continue
        found += 1  # the token that ends the text is the last id, and no text
        assert not set(ids[:-1]) & {1, 2}
        more = [int(i) for i in greedy('-p', prompt, '--print-ids', '--ignore-eos', '-n', len(ids) + 5).out.split()]
        assert more[:len(ids)] == ids and len(more) == len(ids) + 5
        text = greedy('-p', prompt).out
        assert '<s>' not in text and '</s>' not in text and text.rstrip()[-1] in '."!?', text
    assert found, 'no text ended by itself'


def test_prompts():
    ids = good('tokenize', '-m', MODEL, '-p', 'Once upon a time').out.strip()
    expected = greedy('-p', 'Once upon a time', '-n', 8, '--print-ids').out
    assert greedy('--ids', ids, '-n', 8, '--print-ids').out == expected
    assert greedy('--ids', ' %s\n' % ids.replace(' ', ', '), '-n', 8, '--print-ids').out == expected
    with open(path('prompt'), 'w') as f:
        f.write('Once upon a time\n')
    assert greedy('-f', path('prompt'), '-n', 8, '--print-ids').out == expected
    assert greedy('-f', '-', '-n', 8, '--print-ids', stdin=b'Once upon a time\n').out == expected
    assert greedy('-e', '-p', 'Once\\x20upon a time', '-n', 8, '--print-ids').out == expected
    for batch in (1, 3):
        assert greedy('--ids', ids, '-n', 8, '--print-ids', '-b', batch).out == expected
    assert greedy('-p', '', '-n', 3, '--print-ids').out == greedy('--ids', '1', '-n', 3, '--print-ids').out
    assert greedy('-p', b'bad \xff\xfe utf-8', '-n', 2, '--print-ids').code == 0
    assert greedy('-p', 'x', '-n', 0).bytes == b''
    refused(2, ['-p', '-f'], 'run', '-m', MODEL, '-p', 'x', '-f', path('prompt'))
    refused(2, ['-p', '--ids'], 'run', '-m', MODEL, '-p', 'x', '--ids', '1')
    refused(2, ['--ids', "'x'", '2047'], 'run', '-m', MODEL, '--ids', '1 x')
    refused(2, ['--ids', "'2048'", '2047'], 'run', '-m', MODEL, '--ids', '1 2048')
    refused(2, ['--ids', "'-1'"], 'run', '-m', MODEL, '--ids', '-1')
    refused(2, ['empty'], 'run', '-m', MODEL, '--ids', ' ')
    refused(3, [path('none')], 'run', '-m', MODEL, '-f', path('none'))


def test_context():
    refused(2, ['21 tokens', '16'], 'run', '-m', MODEL, '-c', 16, '--ids', ' '.join(['1'] * 21))
    ids = greedy('--ids', '1 393 394', '-c', 8, '--ignore-eos', '--print-ids').out.split()
    assert len(ids) == 8 - 3 + 1  # the last one is chosen from the full context
    assert len(greedy('--ids', ' '.join(['1'] * 8), '-c', 8, '--ignore-eos', '--print-ids').out.split()) == 1
    r = good('run', '-m', MODEL, '--ids', '1 393 394', '-c', 8, '--ignore-eos', '--temp', 0)
    assert 'context is full' in r.err


def test_logits_file():
    file = path('logits')
    ids = [int(i) for i in greedy('-p', 'Once upon a time', '-n', 5, '--print-ids', '--logits', file).out.split()]
    with open(file, 'rb') as f:
        data = f.read()
    assert len(data) == 5 * N_VOCAB * 4
    for step in range(5):
        row = struct.unpack_from('<%df' % N_VOCAB, data, step * N_VOCAB * 4)
        assert row.index(max(row)) == ids[step]
    greedy('-p', 'x', '-n', 0, '--logits', file)
    assert os.path.getsize(file) == 0
    assert sorted(os.listdir(path('.'))).count('logits') == 1 and not [n for n in os.listdir(path('.')) if n.endswith('.tmp')]
    refused(1, ['--logits', 'no/such/folder'], 'run', '-q', '-m', MODEL, '-p', 'x', '-n', 1, '--logits', path('no/such/folder'))


def test_logits_onto_what_is_no_file():
    """A device or pipe is written and stays what it is; a link stays and its target is written; a killed run is in nobody's way."""
    args = [PROGRAM, 'run', '-q', '-m', MODEL, '--ids', '1', '-n', '2', '--ignore-eos']
    size = 2 * N_VOCAB * 4
    os.mkfifo(path('fifo'))
    with subprocess.Popen(['timeout', '20', 'cat', path('fifo')], stdout=subprocess.PIPE) as reader:
        subprocess.run([*args, '--logits', path('fifo')], stdout=subprocess.DEVNULL, check=True)
        assert len(reader.communicate()[0]) == size
    assert stat.S_ISFIFO(os.lstat(path('fifo')).st_mode)
    os.symlink('aim', path('link'))
    r = subprocess.run([*args, '--logits', path('link')], capture_output=True)
    assert r.returncode == 1 and not os.path.exists(path('aim')), r
    open(path('aim'), 'w').close()
    subprocess.run([*args, '--logits', path('link')], stdout=subprocess.DEVNULL, check=True)
    assert os.path.islink(path('link')) and os.path.getsize(path('aim')) == size
    refused(1, ['directory'], 'run', '-q', '-m', MODEL, '--ids', '1', '-n', 1, '--logits', path('.'))
    stale = 'echo old >"$0.$$.tmp"; exec "$@"'
    subprocess.run(['bash', '-c', stale, path('stale'), *args, '--logits', path('stale')], stdout=subprocess.DEVNULL, check=True)
    assert os.path.getsize(path('stale')) == size


def test_closed_standard_files():
    """Text and messages never end up in a file that was given the number of a closed descriptor."""
    for close in ('>&-', '2>&-', '<&-', '<&- >&- 2>&-'):
        subprocess.run(['bash', '-c', 'exec "$@" ' + close, 'bash', PROGRAM, 'run', '-v', '-m', MODEL, '--ids', '1', '-n', '2', '--ignore-eos',
                        '--logits', path('closed')], capture_output=True)
        assert not os.path.exists(path('closed')) or os.path.getsize(path('closed')) == 2 * N_VOCAB * 4, close
        assert ('>&-' in close.split()) == (not os.path.exists(path('closed'))), close
        if os.path.exists(path('closed')):
            os.remove(path('closed'))


def test_input_that_never_ends():
    os.mkfifo(path('model-fifo'))
    refused(3, ['regular file'], 'run', '-m', path('model-fifo'), timeout=20)
    refused(3, ['/dev/zero', 'bytes'], 'run', '-m', MODEL, '-f', '/dev/zero')


def test_penalties_over_a_large_context():
    assert greedy('--ids', '1', '-n', 2, '-c', 1100000, '--repeat-last-n', -1, '--print-ids').out.split()


def test_trace():
    file = path('trace.json')
    expected = greedy('-p', 'Once upon a time', '-n', 3, '--device', 'cpu').out
    assert greedy('-p', 'Once upon a time', '-n', 3, '--device', 'cpu', '--trace', file).out == expected
    with open(file) as f:
        events = json.load(f)['traceEvents']
    assert {e['args']['name'] for e in events if e['name'] == 'thread_name'} == {'cpu'}
    tasks = [e for e in events if e['ph'] == 'X']
    assert all(e['dur'] > 0 and e['pid'] == 1 and e['tid'] == 1 and e['args']['kernel'] for e in tasks)
    assert sorted({e['args']['step'] for e in tasks}) == [0, 1, 2]
    ends = [e['ts'] + e['dur'] for e in tasks]
    assert all(e['ts'] >= end - 0.002 for e, end in zip(tasks[1:], ends)), 'stages of one lane overlap'
    bytes_of = {s: sum(e['args']['bytes'] for e in tasks if e['args']['step'] == s) for s in (0, 1, 2)}
    assert bytes_of[1] == bytes_of[2] and bytes_of[0] > bytes_of[1] > 1e6, bytes_of
    svg = subprocess.run([os.path.join(SOURCE, 'scripts/trace2svg'), file], capture_output=True, text=True)
    assert svg.returncode == 0 and svg.stdout.count('<title>') == len(tasks), svg
    refused(1, ['no/such/folder'], 'run', '-q', '-m', MODEL, '-p', 'x', '-n', 1, '--trace', path('no/such/folder'))


def test_stats():
    expected = greedy('-p', 'Once upon a time', '-n', 9, '--device', 'cpu').out
    r = good('run', '-m', MODEL, '--temp', '0', '-p', 'Once upon a time', '-n', 9, '--device', 'cpu', '--stats')
    lines = [line for line in r.err.splitlines() if 'stats:' in line]
    assert r.out == expected, r
    assert re.search(r'stats: prompt: \d+ tokens in 1 steps, [\d.]+ tokens/s; a token: host memory', lines[0]), lines
    assert re.search(r'stats: decode: 8 tokens in 8 steps, [\d.]+ tokens/s; a token: host memory [\d.]+ MiB', lines[1]), lines
    assert any(re.search(r'stats: steps \(1\): 8, [\d.]+ ms each', line) for line in lines), lines
    assert 'stats:' not in good('run', '-q', '-m', MODEL, '--temp', '0', '-p', 'x', '-n', 2, '--stats').err
    r = good('run', '-m', MODEL, '--temp', '0', '-p', 'Once upon a time', '-n', 9, '--device', 'cpu', '--stats', '--machine',
             os.path.join(SOURCE, 'partition/machines/ddr4-cpu-only.json'))
    assert re.search(r'decode: \d+ % of the roofline', r.err) and re.search(r'steps \(1\): .* predicted [\d.]+ ms', r.err), r.err
    plan = os.path.join(SOURCE, 'tests/data/plans/tiny-mixtral-three-kinds.json')
    r = good('bench', '-m', MODEL, '-p', 32, '-n', 8, '-r', 1, '--plan', plan, '--stats', timeout=250)
    assert len(re.findall(r'stats: decode: .* link up [\d.]+ .iB', r.err)) == 1, r.err
    assert re.search(r'stats: decode: \d+ experts chosen, [\d.]+ % of them resident', r.err), r.err
    assert re.search(r'stats: prompt: stalled: cpu \d+ %', r.err), r.err


def test_logits_on_a_full_disk():
    """A file limit stands for the full disk: nothing stays behind."""
    before = set(os.listdir(path('.')))
    script = 'trap "" XFSZ; ulimit -f 8; exec "$@"'
    r = subprocess.run(['bash', '-c', script, 'bash', PROGRAM, 'run', '-q', '-m', MODEL, '-p', 'x', '-n', '9', '--ignore-eos', '--print-ids',
                        '--logits', path('full')], capture_output=True, text=True)
    assert r.returncode == 1 and r.stderr.startswith('yoke: --logits') and r.stderr.count('\n') == 1, r
    assert set(os.listdir(path('.'))) == before


def test_story_without_arguments():
    r = good('run', cwd=SOURCE)
    assert r.out.startswith('Once upon a time') and r.out.endswith('\n') and len(r.out) > 60, r
    assert re.fullmatch(r'yoke: \S+\.gguf on \S+, \d+ threads?, \S+: prompt \d+ tokens at .*\n', r.err), r
    a, b = (good('run', '-q', '-s', 5, cwd=SOURCE) for _ in range(2))
    assert a.out == b.out and a.err == ''
    if 'yoke' in os.path.basename(PROGRAM):  # where no model can be found
        lost = path('lost')
        os.makedirs(lost, exist_ok=True)
        shutil.copy(PROGRAM, lost + '/yoke')
        env = dict(os.environ, LD_LIBRARY_PATH=library_folder())
        r = subprocess.run([lost + '/yoke', 'run'], capture_output=True, text=True, cwd=lost, env=env)
        assert r.returncode == 2 and 'no model given' in r.stderr and r.stderr.count('\n') == 1, r
        os.makedirs(lost + '/share/yoke/models')
        os.makedirs(lost + '/bin')
        os.rename(lost + '/yoke', lost + '/bin/yoke')
        os.symlink(os.path.realpath(MODEL), lost + '/share/yoke/models/' + os.path.basename(MODEL))
        r = subprocess.run([lost + '/bin/yoke', 'run', '-n', '2'], capture_output=True, text=True, cwd=lost, env=env)
        assert r.returncode == 0 and r.stdout.startswith('Once upon a time'), r


def library_folder():
    """Where the loader finds libyoke for the program under test; a copy of it elsewhere needs to be told."""
    r = subprocess.run(['ldd', PROGRAM], capture_output=True, text=True)
    m = re.search(r'libyoke\S* => (\S+)', r.stdout)
    return os.path.dirname(m.group(1)) if m else ''


def test_sampling():
    texts = {good('run', '-q', '-m', MODEL, '-p', 'Once upon a time', '-n', 24, '-s', s).out for s in (1, 2, 3, 4)}
    assert len(texts) > 1
    same = {good('run', '-q', '-m', MODEL, '-p', 'Once upon a time', '-n', 24, '-s', 9).out for _ in range(2)}
    assert len(same) == 1
    greedy_ids = greedy('--ids', '1 393', '-n', 12, '--print-ids').out
    assert good('run', '-q', '-m', MODEL, '--ids', '1 393', '-n', 12, '--print-ids', '--top-k', 1, '-s', 3).out == greedy_ids
    penalised = greedy('--ids', '1 393 394 261 374', '-n', 60, '--print-ids', '--presence-penalty', 50, '--ignore-eos').out.split()
    assert len(set(penalised)) == 60  # nothing comes twice


def test_reader_goes_away():
    p = subprocess.Popen([PROGRAM, 'run', '-q', '-m', MODEL, '--ids', '1', '--ignore-eos', '-c', '512'], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    assert p.stdout.read(1)
    p.stdout.close()
    assert p.wait(60) == 0 and p.stderr.read() == b''
    for args in (('inspect', '--full', '-m', MODEL), ('inspect', '--full', '-o', 'json', '-m', MODEL), ('run', '--help')):
        read, write = os.pipe()
        os.close(read)
        r = subprocess.run([PROGRAM, *args], stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert r.returncode == 0 and r.stderr == b'', (args, r)
    file = path('all-logits')
    read, write = os.pipe()
    os.close(read)
    subprocess.run([PROGRAM, 'run', '-q', '-m', MODEL, '--ids', '1', '-n', '6', '--ignore-eos', '--logits', file], stdout=write, check=True)
    os.close(write)
    assert os.path.getsize(file) == 6 * N_VOCAB * 4  # a file asked for is still whole


def test_full_device():
    if not os.path.exists('/dev/full'):
        return print('      no /dev/full here: not tested')
    for args in (('run', '-q', '-m', MODEL, '-p', 'x'), ('inspect', '-m', MODEL), ('inspect', '-o', 'json', '-m', MODEL), ('run', '--help'),
                 ('tokenize', '-m', MODEL, '-p', 'x'), ('--version',)):
        with open('/dev/full', 'wb') as full:
            r = subprocess.run([PROGRAM, *args], stdout=full, stderr=subprocess.PIPE, text=True)
        assert r.returncode == 1 and re.fullmatch(r'yoke: stdout: .*\n', r.stderr), (args, r)


def test_interrupt():
    p = subprocess.Popen([PROGRAM, 'run', '-q', '-m', MODEL, '--ids', '1', '--ignore-eos', '-c', '200000', '--logits', path('stopped')],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    start = time.time()
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and time.time() - start < 20, (p.returncode, err)
    assert not [n for n in os.listdir(path('.')) if n.startswith('stopped')]


def test_not_enough_memory():
    r = yoke('run', '-m', MODEL, '-p', 'x', '-c', 16777216, '-ctk', 'f32', '-ctv', 'f32')
    if r.code == 0:
        return print('      this machine holds 64 GB of cache: not tested')
    assert r.code == 4 and re.search(r'\d{9}.*available', r.err) and r.err.count('\n') == 1, r


main(globals())
