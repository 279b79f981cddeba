"""The yoke program as the Python tests drive it, and how they end."""
import os
import subprocess
import sys
import tempfile

SKIP = 77  # meson's exit code of a test that could not run

SOURCE = os.environ.get('YOKE_SOURCE') or os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
SHIPPED = os.path.join(SOURCE, 'models', 'yoke-tiny-mixtral-q4_k_m.gguf')


def fixtures():
    return os.environ.get('YOKE_FIXTURES') or os.path.join(SOURCE, '..', 'shared', 'models')


def skip(reason):
    print('skip: ' + reason)
    sys.exit(SKIP)


class Yoke:
    """engine: flags for every command that computes."""

    def __init__(self, program, engine=()):
        self.program, self.engine = program, engine
        self.folder = tempfile.TemporaryDirectory(prefix='yoke-test-')

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def call(self, *args, timeout=600, env=None):
        """(exit code, stdout, stderr) as bytes; a signal is a negative code."""
        more = self.engine if args[0] in ('run', 'perplexity') else ()
        r = subprocess.run([self.program, *map(str, args), *more], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                           env={**os.environ, **(env or {})})
        return r.returncode, r.stdout, r.stderr

    def text(self, *args, **kw):
        """stdout of a call that must succeed."""
        rc, out, err = self.call(*args, **kw)
        if rc:
            raise RuntimeError('yoke %s: exit code %d: %s' % (' '.join(map(str, args)), rc, err.decode(errors='replace').strip()))
        return out.decode()

    def generate(self, model, ids, n, *flags, logits=False):
        """Greedy: n ids behind the prompt `ids`, with their logits [n][n_vocab] as bytes when asked for."""
        file = self.path('logits')
        out = self.text('run', '-q', '-m', model, '--ids', ' '.join(map(str, ids)), '-n', n, '--temp', 0, '--print-ids', '--ignore-eos',
                        '-c', 512, *(('--logits', file) if logits else ()), *flags)
        new = [int(w) for w in out.split()]
        if not logits:
            return new
        with open(file, 'rb') as f:
            return new, f.read()
