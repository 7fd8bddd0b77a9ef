"""Each notebook runs from top to bottom, in a Jupyter kernel of its own (cells flagged `slow` are left out, `gpu`
without CUDA)."""
import os, subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parents[2]
notebooks = sorted(o.relative_to(root/'nbs').as_posix() for o in (root/'nbs').rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in o.parts)
code = """
import sys
from pathlib import Path
import nbformat
from fastcore.nbio import read_nb
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from torch.cuda import is_available
path, skip = Path(sys.argv[1]), {'slow'} | ({'gpu'} if not is_available() else set())
def is_left_out(c): return bool(skip & c.directives.keys()) or c.directives.get('eval') == 'false'
left_out = [c.cell_type == 'code' and is_left_out(c) for c in read_nb(path).cells]
nb = nbformat.read(path, 4)
nb.cells = [c for c,out in zip(nb.cells, left_out, strict=True) if not out]
nb.cells.insert(0, nbformat.v4.new_code_cell('''
import warnings
for c in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
    warnings.filterwarnings('error', category=c, module='aligngpt|__main__')'''))
where = dict(metadata=dict(path=str(path.parent)))
try: NotebookClient(nb, timeout=3600, kernel_name='python3', resources=where).execute()
except CellExecutionError as e: sys.exit(str(e))
"""


@pytest.mark.notebook
@pytest.mark.parametrize('name', notebooks)
def test_notebook(name):
    env = dict(os.environ, PYTHONPATH=str(root))
    res = subprocess.run([sys.executable, '-c', code, str(root/'nbs'/name)], env=env, capture_output=True, text=True)
    if res.returncode: pytest.fail(f'{name}\n{res.stderr[-6000:]}', pytrace=False)
