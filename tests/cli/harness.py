"""What the tests of the program share: calling it, checking, and the end of a test."""
import os
import subprocess
import sys
import tempfile
import traceback

SKIP = 77  # meson's exit code of a test that could not run
SOURCE = os.environ.get('YOKE_SOURCE') or os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..')
MODEL = os.path.join(SOURCE, 'models', 'yoke-tiny-mixtral-q4_k_m.gguf')
FIXTURES = os.environ.get('YOKE_FIXTURES') or os.path.join(SOURCE, '..', 'shared', 'models')
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else 'yoke'
COMMANDS = ('run', 'chat', 'inspect', 'tokenize', 'perplexity', 'bench', 'profile', 'plan', 'devices', 'synth')

folder = tempfile.TemporaryDirectory(prefix='yoke-cli-')
os.environ['XDG_CACHE_HOME'] = os.path.join(folder.name, 'cache')  # measurements of the machine are kept there
# For builds that check leaks: what drivers and their compilers leak is not ours.
os.environ.setdefault('LSAN_OPTIONS', 'suppressions=%s:print_suppressions=0' % os.path.join(SOURCE, 'tests', 'lsan.supp'))


def path(name):
    return os.path.join(folder.name, name)


class Result:
    def __init__(self, args, code, out, err):
        self.args, self.code, self.bytes, self.err = args, code, out, err.decode(errors='replace')
        self.out = out.decode(errors='replace')

    def __str__(self):
        return 'yoke %s -> %d\nstdout: %.400s\nstderr: %.400s' % (' '.join(self.args), self.code, self.out, self.err)


def yoke(*args, stdin=b'', cwd=None, timeout=120):
    args = [a if isinstance(a, bytes) else str(a) for a in args]
    r = subprocess.run([PROGRAM, *args], input=stdin, capture_output=True, timeout=timeout, cwd=cwd)
    return Result([os.fsdecode(a) for a in args], r.returncode, r.stdout, r.stderr)


def good(*args, **kw):
    """A call that must succeed."""
    r = yoke(*args, **kw)
    assert r.code == 0, r
    return r


def refused(code, words, *args, **kw):
    """A call that must end with `code`, nothing on stdout, and one line on stderr that holds every word."""
    r = yoke(*args, **kw)
    lines = r.err.splitlines()
    assert r.code == code, r
    assert r.bytes == b'', r
    assert len(lines) == 1 and lines[0].startswith('yoke: '), r
    for word in words:
        assert word in lines[0], '%r is not in the message\n%s' % (word, r)
    return r


def main(tests):
    """Run functions named test_*; exit 1 when one fails."""
    failed = 0
    names = [n for n in tests if n.startswith('test_')]
    for name in names:
        try:
            tests[name]()
            print('ok    ' + name)
        except Exception:  # a timeout or a missing program is a failed test as well
            failed += 1
            print('FAIL  ' + name)
            traceback.print_exc(file=sys.stdout)
    print('%d tests, %d failed' % (len(names), failed))
    sys.exit(1 if failed or not names else 0)
