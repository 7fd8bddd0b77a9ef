"""A notebook runs from top to bottom in a process of its own (cells flagged `slow` are left out, `gpu` without CUDA).
The process is forked from one that has imported the large libraries, where the system can.

The asserting cells of most notebooks are tests of their own, in `tests/cells`; these notebooks run whole with
`pytest -m slow tests/book/test_notebooks.py`, or `-k NAME` for some."""
import json, os, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[2]
program = [sys.executable, root/'tests'/'notebooked.py']
notebooks = sorted(o.relative_to(root/'nbs').as_posix() for o in (root/'nbs').rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in o.parts)
celled = {f'{o.parent.name}/{o.stem[5:]}' for o in (root/'tests'/'cells').rglob('test_*.py')}


def marked(name):
    "A parameter; slow, where the cells are tested alone."
    part, _, file = name.rpartition('/')
    return pytest.param(name, marks=[pytest.mark.slow]*(f'{part}/{file[3:-6]}' in celled))


@pytest.fixture(scope='session')
def ask():
    "Runs a notebook; the exit code."
    if not hasattr(os, 'fork'):
        yield lambda *names: subprocess.run([*program, *names]).returncode
        return
    server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def ask(*names):
        print(json.dumps(names), file=server.stdin, flush=True)
        return int(server.stdout.readline())
    yield ask
    server.stdin.close()
    server.wait()


@pytest.mark.notebook
@pytest.mark.parametrize('name', [marked(n) for n in notebooks])
def test_notebook(name, ask, tmp_path):
    log = tmp_path/'log'
    if ask(str(root/'nbs'/name), str(log)): pytest.fail(f'{name}\n{log.read_text(errors="replace")[-6000:]}', pytrace=False)
