"""A notebook run from top to bottom in this process, as `test_notebooks.py` asks for in a fresh one."""
import os, sys, warnings
from pathlib import Path

LIBRARIES = 'torch', 'transformers', 'matplotlib.pyplot', 'IPython.core.interactiveshell', 'fastcore.test'
FUTURE = FutureWarning, DeprecationWarning, PendingDeprecationWarning


def is_left_out(cell):
    "Cells flagged `slow` are, and those flagged `gpu` without CUDA."
    from torch.cuda import is_available
    left_out = {'slow'} | ({'gpu'} if not is_available() else set())
    return bool(left_out & cell.directives.keys()) or cell.directives.get('eval') == 'false'


def run(path, log):
    "Run a notebook; what it prints goes to the file `log`."
    import matplotlib
    from fastcore.nbio import read_nb
    from IPython.core.interactiveshell import InteractiveShell
    os.chdir(Path(path).parent)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in 1, 2: os.dup2(to, stream)
    sys.stdout, sys.stderr = (open(n, 'w', closefd=False, buffering=1) for n in (1, 2))
    matplotlib.use('Agg')
    for c in FUTURE: warnings.filterwarnings('error', category=c, module='aligngpt|__main__')
    shell = InteractiveShell.instance(colors='nocolor')
    for cell in read_nb(path).cells:
        if cell.cell_type != 'code' or is_left_out(cell): continue
        if not shell.run_cell(cell.source, store_history=True).success: sys.exit(1)
