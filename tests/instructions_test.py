#!/usr/bin/env python3
"""Instructions a token, counted by valgrind, against those of tests/data/instructions.json: a guard that needs no quiet machine.

  instructions_test.py YOKE COMPILER [--update]      COMPILER: id and version, a key of the file: gcc-12

Each figure is the difference of two runs of the shipped model on one thread, which differ by TOKENS tokens, so start and load fall out. Counts repeat to a
part in 10^4; more than SLACK above the expected one fails. --update writes the counts found. valgrind knows no AVX-512: levels avx2 and ref.
"""
import json
import os
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
from yoke_program import SHIPPED, SOURCE, skip

FILE = os.path.join(SOURCE, 'tests/data/instructions.json')
LEVELS = ('avx2', 'ref')
TOKENS, SLACK = 16, 0.03
TEXT = 'Once upon a time, there was a little girl named Lily. She loved to play with her toys and draw animals. '


def instructions(yoke, level, prompt, n):
    """Of a whole run; None: the CPU lacks the level."""
    r = subprocess.run(['valgrind', '--tool=callgrind', '--callgrind-out-file=/dev/null', yoke, 'run', '-q', '-m', SHIPPED, '--ids',
                        ' '.join(map(str, prompt)), '-n', str(n), '--temp', '0', '--ignore-eos', '-c', '256', '-t', '1', '--isa', level],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=600, check=False)
    err = r.stderr.decode(errors='replace')
    if 'instruction set %s is not there' % level in err:
        return None
    found = re.search(r'Collected : (\d+)', err)
    if r.returncode or not found:
        raise RuntimeError('exit code %d: %s' % (r.returncode, err))
    return int(found.group(1))


def count(yoke, level, ids):
    """{what: instructions a token}, or None."""
    runs = {}
    for what, few, many in (('decode', (ids[:4], 1), (ids[:4], 1 + TOKENS)), ('prompt', (ids[:2 * TOKENS], 1), (ids[:3 * TOKENS], 1))):
        a, b = instructions(yoke, level, *few), instructions(yoke, level, *many)
        if a is None:
            return None
        runs[what] = (b - a) // TOKENS
    return runs


def main():
    yoke, compiler, update = sys.argv[1], sys.argv[2], '--update' in sys.argv
    if not shutil.which('valgrind'):
        skip('no valgrind')
    with open(FILE) as f:
        expected = json.load(f)
    if compiler not in expected and not update:
        skip('no counts for %s in %s (instructions_test.py --update)' % (compiler, os.path.relpath(FILE, SOURCE)))
    ids = subprocess.run([yoke, 'tokenize', '-q', '-m', SHIPPED, '-p', 2 * TEXT], capture_output=True, check=True).stdout.decode()
    ids = [int(w) for w in ids.split()]
    if len(ids) < 3 * TOKENS:
        raise SystemExit('the text has only %d tokens' % len(ids))
    bad = n_run = 0
    for level in LEVELS:
        got = count(yoke, level, ids)
        if got is None:
            print('skipped: this CPU has no %s' % level)
            continue
        for what, n in got.items():
            n_run += 1
            want = n if update else expected[compiler][level][what]
            change = n / want - 1
            verdict = 'FAIL' if change > SLACK else 'ok' if change >= -SLACK else 'ok, fewer: --update'
            bad += change > SLACK
            print('%-4s %-6s %9d instructions a token, expected %9d, %+.2f %% %s' % (level, what, n, want, 100 * change, verdict), flush=True)
        if update:
            expected.setdefault(compiler, {})[level] = got
    if update:
        with open(FILE, 'w') as f:
            json.dump(expected, f, indent=1, sort_keys=True)
            f.write('\n')
    print('%d counts, %d failed' % (n_run, bad))
    return bad or n_run == 0


if __name__ == '__main__':
    sys.exit(main())
