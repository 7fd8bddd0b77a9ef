"Every test runs in a folder of its own, offline and without a screen, and leaves the environment as it was."
import asyncio, inspect, os, random, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
os.environ.update(HF_HUB_OFFLINE='1', MPLBACKEND='Agg', TOKENIZERS_PARALLELISM='false')
for name in ('reference', 'benchmarks'): # optional material beside the checkout
    if (folder := root.parent/'shared'/name).is_dir(): os.environ.setdefault(f'ALIGNGPT_{name.upper()}', str(folder))
if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1)//workers)))

import pytest
from fastcore.xtras import modified_env


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    "Run in `tmp_path`; temporary files go there too. Random numbers do not depend on the tests before."
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    if np := sys.modules.get('numpy'): np.random.seed(0)
    if torch := sys.modules.get('torch'): torch.manual_seed(0)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with modified_env(): yield
    if plt := sys.modules.get('matplotlib.pyplot'): plt.close('all')


@pytest.fixture(scope='session')
def rehearsal(tmp_path_factory):
    "The folder of an `aligngpt quickstart --rehearse`, made once; `said.txt` is what it said. Only to be read."
    from filelock import FileLock
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: base = base.parent # that of all workers
    run, said = base/'rehearsal', base/'rehearsal'/'said.txt'
    with FileLock(base/'rehearsal.lock'):
        if not said.exists():
            env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
            command = [sys.executable, '-m', 'aligngpt.cli', 'quickstart', '--rehearse', '--out', run]
            done = subprocess.run(command, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            said.write_text(done.stdout)
    return run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    "Run `async def` tests, made from cells with a top-level `await`."
    if not inspect.iscoroutinefunction(pyfuncitem.obj): return None
    args = {k:pyfuncitem.funcargs[k] for k in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**args))
    return True


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` are skipped where torch finds no CUDA device."
    gpu = [o for o in items if o.get_closest_marker('gpu')]
    if not gpu: return
    import torch
    if torch.cuda.is_available(): return
    for o in gpu: o.add_marker(pytest.mark.skip(reason='needs a CUDA device'))
