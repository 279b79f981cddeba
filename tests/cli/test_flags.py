#!/usr/bin/env python3
"""Help, versions, flags and their refusal; the man page and the completion name the same flags as --help."""
import json
import os
import re
import shutil
import subprocess

from harness import COMMANDS, MODEL, SOURCE, good, main, path, refused, yoke


def help_flags(command):
    """[(names, whether it takes a value)] of `yoke COMMAND --help`."""
    text = good(command, '--help').out.split('\nFlags:\n')[1]
    rows = re.findall(r'^ {2,6}(-\S+(?:, -\S+)*)( [A-Z]\S*)?(?:  .*)?$', text, re.M)
    assert len(rows) > 3, text
    return [(names.split(', '), bool(arg)) for names, arg in rows]


def test_help_and_version():
    text = good('--help').out
    for command in COMMANDS:
        assert re.search(r'^  %s +\w' % command, text, re.M), text
        r = good(command, '--help')
        assert r.out.startswith('Usage: yoke %s ' % command) and r.err == '', r
        assert good(command, '-h').out == r.out
        assert good('help', command).out == r.out
        assert max(map(len, r.out.splitlines())) <= 132, r
    assert re.fullmatch(r'yoke \d+\.\d+\.\d+\n', good('--version').out)


def test_unknown_words():
    refused(2, ["'runn'", 'did you mean run'], 'runn')
    refused(2, ["'tokenise'", 'did you mean tokenize'], 'tokenise')
    refused(2, ["'frobnicate'", 'yoke --help'], 'frobnicate')
    refused(2, ['--frob', 'yoke --help'], '--frob')
    refused(2, ["'nothing'"], 'help', 'nothing')
    for command in COMMANDS:
        refused(2, ['--frobnicate', 'yoke %s --help' % command], command, '--frobnicate')
    refused(2, ['--tmp', 'did you mean --temp'], 'run', '--tmp', '1')
    refused(2, ['--theads=2', 'did you mean --threads'], 'run', '--theads=2')
    refused(2, ['--tem'], 'run', '--tem', '0')  # no abbreviations
    refused(2, ['-npl'], 'run', '-npl', '3')  # not taken for -n
    r = yoke()
    assert r.code == 2 and r.bytes == b'' and 'Usage' in r.err


def test_values():
    for flag, values, allowed in (
            ('-t', ('0', '-1', '1.5', '', 'x', '1x', ' 1', '+1', '99999', '0x10', '99999999999999999999'), '1 to 1024'),
            ('-n', ('-5', '-2', 'many', '2147483648'), '-1 to 2147483647'),
            ('-c', ('-1', '16777217'), '0 to 16777216'),
            ('-b', ('0',), '1 to'), ('-ub', ('0',), '1 to'),
            ('-s', ('-2', '1e3'), '-1 to'),
            ('--temp', ('nan', 'inf', '-0.1', '1e999', 'hot', '0x1p1', ''), '0 to 100'),
            ('--top-k', ('-1',), '0 to'), ('--top-p', ('0', '1.01', 'nan', '-1'), 'above 0, at most 1'),
            ('--min-p', ('-0.1', '2'), '0 to 1'), ('--typical', ('0', '2'), 'above 0, at most 1'),
            ('--repeat-penalty', ('0', '-1', 'nan'), 'above 0'), ('--repeat-last-n', ('-2',), '-1 to'),
            ('--frequency-penalty', ('nan', '101'), '-100 to 100'), ('--presence-penalty', ('inf',), '-100 to 100'),
            ('-ctk', ('q8_0', 'f16x', ''), 'f16|f32'), ('--cache-type-v', ('q4_0',), 'f16|f32'),
            ('--vram-budget', ('0', '-1', '8X', '8GG', 'G', '9999999T', '', 'nan'), '512M or 8G')):
        for value in values:
            refused(2, [flag + ':', "'%s'" % value, allowed], 'run', '-m', MODEL, '-p', 'x', flag, value)
    refused(2, ['-t', 'needs a value'], 'run', '-t')
    refused(2, ['--print-ids', 'takes no value'], 'run', '--print-ids=1')
    refused(2, ['-ctk f32', '-ctv f16'], 'run', '-m', MODEL, '-p', 'x', '-ctk', 'f32')
    refused(2, ['-o:', 'text|json'], 'inspect', '-o', 'xml')
    refused(2, ['-o:', 'md|csv|json'], 'bench', '-o', 'text')
    for value in ('', '1,', ',1', '1,x', '-1', '1 2'):
        refused(2, ['-p:', "'%s'" % value], 'bench', '-m', MODEL, '-p', value)
    for value in ('1', '1,2,3', '0,1'):
        refused(2, ['-pg:', "'%s'" % value], 'bench', '-m', MODEL, '-pg', value)
    refused(2, ['nothing to measure'], 'bench', '-m', MODEL, '-p', '0', '-n', '0')


def test_good_values():
    base = ('run', '-q', '-m', MODEL, '--ids', '1 393', '--print-ids', '-n', '2', '--temp', '0')
    expected = good(*base).out
    for more in (('--vram-budget', '8G'), ('--vram-budget=1.5GiB',), ('--vram-budget', '512M'), ('--auto-partition',),
                 ('--no-auto-partition',), ('--threads=1',), ('-t', '2'), ('-b', '1'), ('-ub', '1'), ('--device', 'cpu'), ('-dev', 'auto'),
                 ('--isa', 'ref'), ('-s', '7'), ('--seed', '-1'), ('--ctx-size', '64'), ('--check-tensors',), ('-v',)):
        quiet = [a for a in base if a != '-q'] if more == ('-v',) else base
        assert good(*quiet, *more).out.split()[0] == expected.split()[0], more
    r = good('run', '-v', '-m', MODEL, '-p', 'Once', '-n', '1')
    assert re.search(r'^yoke: seed \d+$', r.err, re.M), r  # a random seed can be used again
    refused(2, ['floppy'], *base, '--device', 'floppy')
    refused(2, ['sse9', 'ref'], *base, '--isa', 'sse9')


def test_more_threads_than_cores():
    cores = int(re.search(r'cores +(\d+) physical', good('devices').out).group(1))
    base = ('run', '-m', MODEL, '--ids', '1 393', '--print-ids', '-n', '2', '--temp', '0', '-t')
    one = good(*base, '1')
    assert 'threads on' not in one.err, one
    if cores >= 256:
        return
    many = good(*base, cores + 1)
    assert len(re.findall(r'^yoke: .*%d threads on %d cores' % (cores + 1, cores), many.err, re.M)) == 1, many
    assert many.out == one.out


def test_check_tensors():
    tensors = {t['name']: t for t in json.loads(good('inspect', '-o', 'json', MODEL).out)['tensors']}
    with open(MODEL, 'rb') as f:
        whole = f.read()
    # Half precision scales: the first of a block of 144 bytes (Q4_K), the last of one of 210 (Q6_K); a whole F32, of a norm: always checked.
    for name, kind, at, bits in (('token_embd.weight', 'Q4_K', 144 * 7, b'\x01\x7e'), ('output.weight', 'Q6_K', 210 * 9 + 208, b'\x00\xfc'),
                                 ('blk.1.ffn_norm.weight', 'F32', 4 * 5, b'\x00\x00\x80\x7f')):
        assert tensors[name]['type'] == kind
        offset = tensors[name]['offset'] + at
        with open(path('nan.gguf'), 'wb') as f:
            f.write(whole[:offset] + bits + whole[offset + len(bits):])
        for command in (('run', '-p', 'x', '-n', '1'), ('bench', '-p', '4', '-n', '0', '-r', '1'), ('inspect',)):
            refused(3, [name, 'not finite' if kind == 'F32' else 'NaN or infinity'], command[0], '-q', '-m', path('nan.gguf'), '--check-tensors', *command[1:])
    good('run', '-q', '-m', MODEL, '--check-tensors', '-p', 'x', '-n', '1')


def test_pack_cache():
    base = ('run', '-v', '-m', MODEL, '--ids', '1 393', '--print-ids', '-n', '8', '--temp', '0')
    cache = path('packed')
    expected = good(*base).out
    for more, said in ((('-t', '1'), 'written'), ((), 'read'), (('--isa', 'ref', '-n', '1'), 'read'), (('--no-repack', '-n', '1'), None)):
        r = good(*base, '--pack-cache', cache, *more)
        assert r.out.split() == expected.split()[:len(r.out.split())] and r.out, r
        assert re.findall(r'pack cache \S+: (\w+)', r.err) == ([said] if said else []), r
    file, = os.listdir(cache)
    with open(os.path.join(cache, file), 'r+b') as f:
        f.seek(-100, os.SEEK_END)
        f.write(b'damaged')
    r = good(*[a for a in base if a != '-v'], '--pack-cache', cache)
    assert r.out == expected and len(re.findall('pack cache', r.err)) == 1 and 'warning' in r.err, r
    for command in (('perplexity', '-f', SOURCE + '/models/heldout_story.txt', '-c', '64', '--chunks', '1'), ('bench', '-p', '4', '-n', '0', '-r', '1')):
        assert ': written' in good(command[0], '-v', '-m', MODEL, *command[1:], '--pack-cache', path('of ' + command[0])).err
    refused(2, ['empty name'], *base[:1], '-q', *base[2:], '--pack-cache', '')


def test_model_argument():
    assert good('tokenize', MODEL, '-p', 'x').out == good('tokenize', '-m', MODEL, '-p', 'x').out
    refused(2, ['two models'], 'tokenize', '-m', MODEL, MODEL, '-p', 'x')
    refused(2, ['one too many'], 'tokenize', MODEL, MODEL, '-p', 'x')
    refused(2, ['one too many'], 'devices', MODEL)
    refused(3, [path('absent.gguf')], 'run', '-m', path('absent.gguf'), '-p', 'x')
    refused(3, ['directory'], 'run', '-m', SOURCE, '-p', 'x')
    with open(path('new\nline.gguf'), 'w') as f:
        f.write('not a model')
    refused(3, ['new?line.gguf'], 'inspect', path('new\nline.gguf'))
    with open(path('-dash.gguf'), 'w') as f:
        f.write('not a model')
    refused(3, ['-dash.gguf'], 'inspect', '--', '-dash.gguf', cwd=path('.'))


def test_man_page():
    with open(SOURCE + '/docs/yoke.1') as f:
        man = f.read().replace('\\-', '-')
    in_man = set(re.findall(r'\\fB(--?[a-z][a-z-]*)\\fR', man))
    known = {'--help', '--version'}
    for command in COMMANDS:
        assert '.SS yoke %s\n' % command in man
        section = man.split('.SS yoke %s\n' % command)[1].split('\n.SS ')[0].split('\n.SH ')[0]
        shared = man.split('\n.SH FLAGS OF ALL COMMANDS')[1]
        for names, value in help_flags(command):
            known.update(names)
            line = ', '.join('\\fB%s\\fR' % n for n in names) + (' \\fI' if value else '\n')
            assert '.TP\n' + line in section or '.TP\n' + line in shared, '%s %s is not in the man page' % (command, names)
    assert in_man <= known, 'the man page has unknown flags: %s' % (in_man - known)
    if shutil.which('man'):
        r = subprocess.run(['man', '--warnings', '-l', SOURCE + '/docs/yoke.1'], capture_output=True, text=True,
                           env={'PATH': '/usr/bin:/bin', 'LC_ALL': 'C.UTF-8', 'MANPAGER': 'cat'})
        assert not r.stderr, r.stderr


def complete(*words):
    script = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _yoke; printf "%s\\n" "${COMPREPLY[@]}"'
    r = subprocess.run(['bash', '-c', script, 'bash', SOURCE + '/scripts/completions/yoke.bash', *words], capture_output=True, text=True)
    assert r.returncode == 0 and not r.stderr, r.stderr
    return set(r.stdout.split())


def test_completion():
    assert complete('yoke', '') == {*COMMANDS, 'help', '--help', '--version'}
    assert complete('yoke', 'to') == {'tokenize'}
    for command in COMMANDS:
        expected = {n for names, _ in help_flags(command) for n in names}
        assert complete('yoke', command, '-') == expected, 'completion of %s differs: %s' % (
            command, complete('yoke', command, '-') ^ expected)
    assert complete('yoke', 'bench', '-o', '') == {'md', 'csv', 'json'}
    assert complete('yoke', 'inspect', '-o', 'j') == {'json'}


main(globals())
