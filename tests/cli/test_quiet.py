"""A newcomer's terminal shows progress bars and our own lines: no warning of any library reaches it, and none
about the future is raised."""
import os, re, subprocess, sys
from pathlib import Path

import pytest
from PIL import Image

root = Path(__file__).resolve().parents[2]
code = """
import sys, warnings
warnings.filterwarnings('error', category=FutureWarning)
for c in (DeprecationWarning, PendingDeprecationWarning): warnings.filterwarnings('error', category=c, module='aligngpt')
from aligngpt.cli.main import main
main()
"""
ours = re.compile(r'^(note: .*|error: .*|  hint: .*|[^|]*\d+%\|.*|[^|]*\d+it \[.*|)$') # our lines, and bars of tqdm


def run(*args, inp=None):
    "A command in a process of its own, where warnings about the future are errors."
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], env=env, input=inp, capture_output=True,
                          text=True)


def quiet(done):
    "It went well, and standard error holds nothing but our own."
    assert done.returncode == 0, done.stderr[-3000:]
    odd = [l for l in re.split(r'[\r\n]', done.stderr) if not ours.match(l) or 'weights:' in l or 'shards:' in l]
    assert not odd, odd[:5]
    return done.stdout


def test_chat(rehearsal, tmp_path):
    Image.new('RGB', (64, 64), 'red').save(tmp_path/'p.png')
    assert quiet(run('chat', rehearsal, '--image', tmp_path/'p.png', '--temperature', 0,
                     inp='what color is the shape?\n')).strip()


@pytest.mark.parametrize('args', [('zoo',), ('plan', '--preset', 'aligngpt-7b'), ('eval', '--list')],
                         ids=lambda a: a[0])
def test_tables(args): assert quiet(run(*args))


@pytest.mark.parametrize('args', [(), ('zoo',), ('plan',), ('eval', '--list'), ('eval', '--list', '--tasks', 'gqa')],
                         ids=lambda a: a[0] if a else 'alone')
def test_80_columns(args, tmp_path):
    "On a terminal of 80 columns no line is broken by the terminal."
    pexpect = pytest.importorskip('pexpect')
    env = dict(os.environ, PYTHONPATH=str(root), TERM='dumb')
    env.pop('COLUMNS', None)
    said, code = pexpect.run(' '.join([sys.executable, '-m', 'aligngpt.cli', *args]), env=env, cwd=str(tmp_path),
                             timeout=300, withexitstatus=True, dimensions=(24, 80))
    lines = said.decode().splitlines()
    assert code == 0 and len(lines) > 5 and not [l for l in lines if l.startswith('error')]
    assert max(map(len, lines)) <= 80, max(lines, key=len)


def test_training(rehearsal, tmp_path):
    "Two steps of tuning with adapters."
    pytest.importorskip('peft')
    from aligngpt.quickstart.easyvqa import folder
    quiet(run('finetune', '--model', rehearsal/'model', '--data', rehearsal/'finetune'/'tuning.json', '--images',
              folder(), '--out', tmp_path/'run',
              '--max-steps', 2, '--batch-size', 2, '--lora', 4, '--device', 'cpu'))
