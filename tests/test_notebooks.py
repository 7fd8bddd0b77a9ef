"Each notebook runs from top to bottom, in a process of its own (cells flagged `slow` are left out, `gpu` without CUDA)."
import subprocess, sys
from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
notebooks = sorted(o.relative_to(root/'nbs').as_posix() for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
code = """
import sys, warnings
from pathlib import Path
from nbdev.test import test_nb
from nbdev.config import get_config
from torch.cuda import is_available
for c in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
    warnings.filterwarnings('error', category=c, module='aligngpt|__main__')
flags = get_config(path=sys.argv[2]).tst_flags.split()
ok, secs = test_nb(Path(sys.argv[1]), skip_flags=flags, force_flags=['gpu']*is_available(), basepath=sys.argv[2])
sys.exit(not ok)
"""


@pytest.mark.notebook
@pytest.mark.parametrize('name', notebooks)
def test_notebook(name):
    res = subprocess.run([sys.executable, '-c', code, str(root/'nbs'/name), str(root)], capture_output=True, text=True, timeout=900)
    if res.returncode: pytest.fail(f'{name}\n{res.stderr[-6000:]}', pytrace=False)
