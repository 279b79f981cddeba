#!/usr/bin/env python3
"""yoke chat: through pipes and on a pseudo terminal."""
import os
import pty
import select
import signal
import subprocess
import time

from harness import MODEL, PROGRAM, good, main, refused, yoke


def chat(text, *flags, **kw):
    return yoke('chat', '-m', MODEL, '--temp', '0', *flags, stdin=text.encode(), **kw)


def test_answers_only_on_stdout():
    r = chat('Tell me a story about a fox.\n', '-n', '12')
    assert r.code == 0 and r.out.count('\n') >= 1 and 'User:' not in r.out and 'Assistant:' not in r.out, r
    assert good('chat', '-q', '-m', MODEL, stdin=b'').bytes == b''
    assert chat('', '-q').err == ''


def test_conversation_is_kept():
    """A turn adds its own tokens to the sequence: the same as one text with both turns."""
    one = chat('Tell me a story about a fox.\nTell me more.\n', '-n', '10', '-q')
    assert one.code == 0
    again = chat('Tell me a story about a fox.\n/reset\nTell me more.\n', '-n', '10', '-q')
    fresh = chat('Tell me more.\n', '-n', '10', '-q')
    assert again.out.endswith(fresh.out) and again.out != one.out, (again.out, fresh.out, one.out)


def test_lines():
    for text in ('one\\\ntwo\n', '"""one\ntwo"""\n', '"""\none\ntwo\n"""\n', '"""one\ntwo'):
        r = chat(text + ('' if text.endswith('two') else '/exit\nnever\n'), '-n', '8', '-q')
        assert r.code == 0, r
        assert r.out == chat('one\\\ntwo', '-n', '8', '-q').out, text
    assert chat('\n\n/exit\nx\n', '-q').bytes == b''
    assert '/reset' in chat('/help\n').err
    assert "'/what'" in chat('/what\n').err


def test_flags():
    a = chat('Tell me a story.\n', '-n', '10', '-q', '-sys', 'Once upon a time there was a fox.')
    b = chat('Tell me a story.\n', '-n', '10', '-q')
    assert a.code == b.code == 0 and a.out != b.out
    refused(2, ['-p'], 'chat', '-m', MODEL, '-p', 'x')


def test_context_full():
    r = chat('one\ntwo\nthree\n', '-c', '40', '--ignore-eos')
    assert r.code == 2 and '/reset' in r.err and 'context' in r.err, r
    r = chat('word ' * 300 + '\n', '-c', '64', '-q')
    assert r.code == 2 and r.bytes == b'' and r.err.count('\n') == 1, r


def read_until(fd, want, seconds=30):
    data = b''
    end = time.time() + seconds
    while want not in data:
        assert time.time() < end, 'waited for %r, got %r' % (want, data)
        if select.select([fd], [], [], 0.2)[0]:
            data += os.read(fd, 4096)
    return data


def test_terminal():
    """Ctrl-C stops an answer and the conversation goes on; Ctrl-D ends."""
    try:
        master, slave = pty.openpty()
    except OSError as e:  # a root without /dev/pts; the other tests of chat use pipes
        print('skip: no terminal to be had: %s' % e)
        return
    p = subprocess.Popen([PROGRAM, 'chat', '-m', MODEL, '--ignore-eos', '-c', '100000', '--temp', '1.5'], stdin=slave, stdout=slave,
                         stderr=slave, preexec_fn=os.setsid, close_fds=True)
    os.close(slave)
    try:
        read_until(master, b'User: ')
        os.write(master, b'Tell me a story.\n')
        read_until(master, b'Assistant: ')
        time.sleep(0.1)
        p.send_signal(signal.SIGINT)
        read_until(master, b'User: ')
        os.write(master, b'And\\\n')
        read_until(master, b'... ')
        os.write(master, b'another.\n')
        read_until(master, b'Assistant: ')
        p.send_signal(signal.SIGINT)
        read_until(master, b'User: ')
        p.send_signal(signal.SIGINT)  # with nothing to stop: a hint
        read_until(master, b'Ctrl-D')
        os.write(master, b'\x04')
        assert p.wait(30) == 0
    finally:
        if p.poll() is None:
            p.kill()
        os.close(master)


def test_reader_goes_away():
    p = subprocess.Popen([PROGRAM, 'chat', '-q', '-m', MODEL, '--ignore-eos'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    p.stdin.write(b'hello\n')
    p.stdin.flush()
    assert p.stdout.read(1)
    p.stdout.close()
    assert p.wait(60) == 0 and p.stderr.read() == b''
    p.stdin.close()


main(globals())
