"""Notebooks run from top to bottom, as `test_notebooks.py` asks for: this program imports the large libraries, which
takes longer than most notebooks, and makes a process for each line `["path", "log"]` that it reads. It answers with the
process's exit code."""
import json, os, sys, tempfile, warnings
from importlib import import_module
from pathlib import Path

LIBRARIES = 'torch', 'transformers', 'matplotlib.pyplot', 'IPython.core.interactiveshell', 'fastcore.test'
FUTURE = FutureWarning, DeprecationWarning, PendingDeprecationWarning


def is_left_out(cell):
    "Cells flagged `slow` are, and those flagged `gpu` without CUDA."
    from torch.cuda import is_available
    left_out = {'slow'} | ({'gpu'} if not is_available() else set())
    return bool(left_out & cell.directives.keys()) or cell.directives.get('eval') == 'false'


def run(path, log):
    "Run a notebook; what it prints goes to the file `log`, and its own files beside that."
    import matplotlib
    from fastcore.nbio import read_nb
    from IPython.core.interactiveshell import InteractiveShell
    os.chdir(Path(path).parent)
    tempfile.tempdir = str(Path(log).parent)
    nothing, to = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for old,new in ((nothing, 0), (to, 1), (to, 2)): os.dup2(old, new)
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(n, 'w', closefd=False, buffering=1) for n in (1, 2))
    matplotlib.use('Agg')
    for c in FUTURE: warnings.filterwarnings('error', category=c, module='aligngpt|__main__')
    shell = InteractiveShell.instance(colors='nocolor')
    for cell in read_nb(path).cells:
        if cell.cell_type != 'code' or is_left_out(cell): continue
        if not shell.run_cell(cell.source, store_history=True).success: sys.exit(1)


def serve():
    "Make a process for each line."
    for name in LIBRARIES: import_module(name)
    for line in sys.stdin:
        if not (child := os.fork()): return run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == '__main__': serve() if len(sys.argv) == 1 else run(*sys.argv[1:])
