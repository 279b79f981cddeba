#!/usr/bin/env python3
"""Each allocation fails once: the program must end with status 4 and one line, without crash or leak (run it with AddressSanitizer).

  fault_test.py YOKE [--full]     YOKE: a build with -Dfault_injection=true

Without --full a sample: the first and last allocations of each command, and some between.
"""
import argparse
import os
import sys

sys.dont_write_bytecode = True
from yoke_program import SHIPPED, SOURCE, Yoke

STORY = os.path.join(SOURCE, 'models/heldout_story.txt')
COMMANDS = [
    ('run', '-q', '-m', SHIPPED, '-p', 'Once', '-n', 2, '--temp', 0, '-c', 64, '-t', 2),
    ('tokenize', '-q', '-m', SHIPPED, '-p', 'Once upon a time'),
    ('perplexity', '-q', '-m', SHIPPED, '-f', STORY, '-c', 64, '--chunks', 1, '-t', 1),
    ('inspect', '-q', '-m', SHIPPED),
]
EDGE, BETWEEN = 12, 12
SLACK = 8  # so many allocations in a row may be tolerated ones before the run counts as through


def attempt(yoke, cmd, k):
    return yoke.call(*cmd, env={'YOKE_FAIL_ALLOC': str(k)}, timeout=120)


def through(yoke, cmd, k, ok):
    """Nothing fails any more from the k-th allocation on."""
    return all(attempt(yoke, cmd, k + i) == ok for i in range(SLACK))


def count(yoke, cmd, ok):
    """Allocations of a run: the lowest k with which (and behind which) nothing fails."""
    low, high = 0, 1
    while not through(yoke, cmd, high, ok):
        low, high = high, 2 * high
        if high > 1 << 24:
            raise SystemExit('fault_test: no end of allocations')
    while high - low > 1:
        mid = (low + high) // 2
        low, high = (low, mid) if through(yoke, cmd, mid, ok) else (mid, high)
    return high - 1


def check(yoke, cmd, full):
    rc, out, err = ok = attempt(yoke, cmd, 0)
    if rc:
        print('FAIL %s: exit code %d without a failing allocation: %s' % (cmd[0], rc, err.decode(errors='replace')))
        return 1
    n = count(yoke, cmd, ok)
    if n < 10:
        print('FAIL %s: only %d allocations seen: was the build made with -Dfault_injection=true?' % (cmd[0], n))
        return 1
    ks = range(1, n + 1)
    if not full:
        step = max(1, n // (BETWEEN + 1))
        ks = sorted({k for k in [*range(1, EDGE + 1), *range(step, n, step), *range(n - EDGE + 1, n + 1)] if 1 <= k <= n})
    bad = tolerated = 0
    for k in ks:
        r = rc, _, err = attempt(yoke, cmd, k)
        if r == ok:
            tolerated += 1
        elif rc != 4 or err.count(b'\n') != 1:
            bad += 1
            print('FAIL %s: allocation %d of %d: exit code %d: %s' % (cmd[0], k, n, rc, err.decode(errors='replace')[:3000]))
    print('%s: %d allocations, %d of them failed in turn, %d done without' % (cmd[0], n, len(ks), tolerated), flush=True)
    if tolerated * 4 > len(ks):
        print('FAIL %s: too many failures went unnoticed' % cmd[0])
        bad += 1
    return bad


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('yoke')
    ap.add_argument('--full', action='store_true')
    a = ap.parse_args()
    yoke = Yoke(a.yoke)
    bad = sum(check(yoke, cmd, a.full) for cmd in COMMANDS)
    return 1 if bad else 0


if __name__ == '__main__':
    sys.exit(main())
