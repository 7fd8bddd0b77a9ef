"Runs of `launched.py` in one process or several, for the tests that compare them."
import json, os, socket, subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SHARDINGS = 'none', 'zero2', 'zero3', 'zero3-offload', 'fsdp'


def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def launch(out, *fields, processes=2):
    "Run `launched.py` in this many processes."
    run = [sys.executable] if processes == 1 else [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                                                   '--nproc_per_node', str(processes)]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]),
           'OMP_NUM_THREADS': '1'}
    return subprocess.run([*run, str(HERE/'launched.py'), str(out), *fields], env=env, capture_output=True, text=True,
                          timeout=1800)

def result(out): return json.loads((out/'result.json').read_text())

def need(sharding):
    if sharding.startswith('zero'): pytest.importorskip('deepspeed')
