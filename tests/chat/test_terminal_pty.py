"The terminal chat at a real (pseudo) terminal: keys, streaming, Ctrl-C, history, completion; and in a real pipe."
import os, signal, subprocess, sys, time
from pathlib import Path

import pytest

pexpect = pytest.importorskip('pexpect', reason='no pexpect: pip install pexpect')
root = Path(__file__).resolve().parents[2]
BRAKED = """
import time, pathlib
from aligngpt.chat.session import open_session
from aligngpt.chat.terminal import chat_terminal
session, hold = open_session('run', temperature=0), pathlib.Path('hold')
def brake(*args): # an answer stays at its third token while the file is there
    while hold.exists() and session.reply.answer.tokens >= 3: time.sleep(.02)
session.reader.model.language_model.register_forward_pre_hook(brake)
chat_terminal(session, ['blue.png'])
"""
PATIENCE = 240 # seconds; a busy machine takes its time


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a run and a picture."
    from aligngpt.model.toy import swatch, toy
    folder = tmp_path_factory.mktemp('place')
    for part in toy(): part.save_pretrained(folder/'run'/'model')
    swatch('blue').save(folder/'blue.png')
    return folder


def test_pty(place):
    "A person types."
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', TERM='xterm-256color', COLORTERM='truecolor',
               XDG_STATE_HOME=str(place))
    env.pop('NO_COLOR', None)
    term = pexpect.spawn(sys.executable, ['-c', BRAKED], env=env, cwd=place, encoding='utf-8', dimensions=(40, 120),
                         timeout=PATIENCE,
                         # a shell's background jobs are born deaf to Ctrl-C
preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    def see(*texts):
        for t in texts: term.expect_exact(t)
    see('▀', '32 x 32 picture', '/help lists the commands', '> ')
    sent = time.perf_counter()
    term.sendline('What colour is it?')
    see('It')
    print(f'the first token took {time.perf_counter() - sent:.2f} s') # shown by `pytest -rP`
    see(' is **blue**.', 'tokens/s', 'α', '> ')

    (place/'hold').touch()
    term.sendline('Count to ten.')
    see('one, two, three,')
    term.sendintr()
    see('stopped', '> ')
    (place/'hold').unlink()
    term.sendline('/again')
    see('nine, ten.', '> ')
    term.sendintr()
    see('/quit leaves', '> ')

    term.send('\x1b[A'); see('/again') # the arrow key brings the last line back
    term.sendcontrol('u'); term.send('/lev\t'); see('/level ')
    term.sendline('3'); see('level 3', '> ')
    term.send('/image bl\t'); see('blue.png'); term.sendline('')
    see('32 x 32 picture', '> ')
    term.sendline('Describe it.'); see('like the sea', 'level 3', '> ')
    term.sendline('/image nowhere.png'); see('error: nowhere.png: no such file', '> ')
    term.sendline('/save talk.md'); see('saved talk.md', '> ')
    term.sendeof()
    term.expect(pexpect.EOF); term.close()
    assert (term.exitstatus, term.signalstatus) == (0, None)
    assert 'like the sea' in (place/'talk.md').read_text(encoding='utf-8')
    assert 'Describe it.' in (place/'aligngpt'/'history').read_text(encoding='utf-8')


def piped(place, text, *args):
    "What `aligngpt chat` prints for `text` on its standard input."
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-m', 'aligngpt.cli', 'chat', 'run', '--temperature', '0', *args],
                          input=text, capture_output=True, text=True, encoding='utf-8', env=env, cwd=place,
                          timeout=PATIENCE)


def test_pipe(place):
    "In a pipe, the answer and nothing else."
    done = piped(place, 'What colour is it?\n', '--image', 'blue.png')
    assert (done.returncode, done.stdout) == (0, 'It is **blue**.\n'), done.stderr
    lost = piped(place, 'And this?', '--image', 'nowhere.png')
    assert (lost.returncode, lost.stdout) == (1, '')
    assert 'error: nowhere.png: no such file' in lost.stderr and 'Traceback' not in lost.stderr
