#!/usr/bin/env python3
"""Instructions that products with packed weights execute for a tile, against those of tests/data/tile_instructions.json: a guard that needs no quiet machine.

  tiles_test.py COUNT_TILES COMPILER [--update]      COMPILER: id and version, a key of the file: gcc-12

COUNT_TILES (tests/count_tiles.c) steps through the kernels of every level that this CPU has. Counts repeat exactly; more than SLACK above the expected one
fails, and so does a kernel without one. --update writes the counts found and keeps those of other levels.
"""
import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
from yoke_program import SKIP, SOURCE, skip

FILE = os.path.join(SOURCE, 'tests/data/tile_instructions.json')
SLACK = 0.03


def main():
    program, compiler, update = sys.argv[1], sys.argv[2], '--update' in sys.argv
    with open(FILE) as f:
        expected = json.load(f)
    if compiler not in expected and not update:
        skip('no counts for %s in %s (tiles_test.py --update)' % (compiler, os.path.relpath(FILE, SOURCE)))
    r = subprocess.run([program], stdout=subprocess.PIPE, timeout=1700, check=False)
    if r.returncode == SKIP:
        skip('the CPU cannot be stopped behind each instruction here')
    if r.returncode:
        raise RuntimeError('exit code %d' % r.returncode)
    lines = [line.split() for line in r.stdout.decode().splitlines()]
    for level in sorted(set(expected.get(compiler, {})) - {line[0] for line in lines}):
        print('skipped: this CPU has no %s' % level)
    bad = 0
    for level, kind, tokens, *counts in lines:
        if update:
            known = expected.setdefault(compiler, {}).setdefault(level, {}).setdefault(kind, {})
            known[tokens] = int(counts[0])
        want = expected[compiler].get(level, {}).get(kind, {}).get(tokens)
        n = int(counts[0])
        fails = want is None or n > want * (1 + SLACK)
        bad += fails
        verdict = 'FAIL' if fails else 'ok' if n >= want * (1 - SLACK) else 'ok, fewer: --update'
        print('%-4s %-7s %-6s %2s tokens: %5d instructions a tile, expected %s; %s products, %s f32, %s integer, %s moves, %s other' %
              (verdict, level, kind, tokens, n, want, *counts[1:]))
    if update:
        with open(FILE, 'w') as f:
            json.dump(expected, f, indent=1, sort_keys=True)
            f.write('\n')
    print('%d counts, %d failed' % (len(lines), bad))
    return bad or not lines


if __name__ == '__main__':
    sys.exit(main())
