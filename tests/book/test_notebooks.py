"""Each notebook runs from top to bottom in a process of its own (cells flagged `slow` are left out, `gpu` without
CUDA). The process is forked from one that has imported the large libraries, which takes longer than most notebooks."""
import multiprocessing
from pathlib import Path

import notebooked, pytest

root = Path(__file__).resolve().parents[2]
notebooks = sorted(o.relative_to(root/'nbs').as_posix() for o in (root/'nbs').rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in o.parts)


@pytest.fixture(scope='session')
def fresh():
    "Makes processes with the libraries imported, where the system can."
    if 'forkserver' not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(list(notebooked.LIBRARIES))
    return context


@pytest.mark.notebook
@pytest.mark.parametrize('name', notebooks)
def test_notebook(name, fresh, tmp_path):
    log = tmp_path/'log'
    child = fresh.Process(target=notebooked.run, args=(str(root/'nbs'/name), str(log)))
    child.start()
    child.join()
    if child.exitcode: pytest.fail(f'{name}\n{log.read_text(errors="replace")[-6000:]}', pytrace=False)
