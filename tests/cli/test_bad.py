#!/usr/bin/env python3
"""Broken model files: exit code 3 and one line that names what is wrong."""
import os
import sys

from harness import FIXTURES, SKIP, good, main, yoke

FOLDER = os.path.join(FIXTURES, 'bad')
if not os.path.exists(FOLDER + '/expected.tsv'):
    print('skip: no broken files at ' + FOLDER)
    sys.exit(SKIP)


def test_broken_files():
    with open(FOLDER + '/expected.tsv') as f:
        rows = [line.rstrip('\n').split('\t') for line in f][1:]
    assert len(rows) > 50
    wrong = []
    for name, _, words in rows:
        r = yoke('inspect', FOLDER + '/' + name, timeout=30)
        named = any(w.strip().lower() in r.err.lower() for w in words.split(','))
        if r.code != 3 or r.bytes or r.err.count('\n') != 1 or not r.err.startswith('yoke: ') or not named:
            wrong.append('%s (one of %s)' % (r, words))
    assert not wrong, '\n'.join(wrong)


def test_whole_files():
    for name in ('good.gguf', 'good-moe.gguf'):
        good('inspect', FOLDER + '/' + name)


main(globals())
