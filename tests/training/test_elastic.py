"Nodes that come and go, and a run folder that is not the same for all of them."
import json, os, signal, subprocess, sys, time

import pytest
from safetensors.torch import load_file
from launching import HERE, launch, port, result

pytestmark = pytest.mark.slow
ENV = {**os.environ, 'PYTHONPATH':os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]),
       'OMP_NUM_THREADS':'1'}


def node(out, rank, at, *fields):
    "One of two processes, with a folder of its own."
    env = ENV | dict(RANK=str(rank), LOCAL_RANK='0', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(at))
    return subprocess.Popen([sys.executable, str(HERE/'launched.py'), str(out), *fields], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def same_end(*runs):
    "Two runs have the same losses and weights, but for the order of sums."
    lines = [[json.loads(l)['loss'] for l in (o/'run'/'log.jsonl').open()] for o in runs]
    assert len(lines[0]) == len(lines[1]) and max(abs(a-b) for a,b in zip(*lines)) < 1e-5
    weights = [load_file(o/'run'/'model'/'model.safetensors') for o in runs]
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < 1e-4

def test_folders_that_are_not_shared(tmp_path):
    "One node goes on at step 6, the other begins: an error on both, before a step."
    (tmp_path/'a').mkdir(); (tmp_path/'b').mkdir()
    fields = 'n=48', 'save_every=2'
    assert launch(tmp_path/'a', *fields, 'at=6', f'signal={int(signal.SIGTERM)}').returncode # of torchrun
    log = (tmp_path/'a'/'run'/'log.jsonl').read_bytes()
    at = port()
    for p in [node(tmp_path/o, r, at, *fields) for r,o in enumerate('ab')]: p.communicate(timeout=300)
    for o in 'ab':
        said = (tmp_path/o/'error.txt').read_text()
        assert 'not the same folder for all processes: the last checkpoint is checkpoint-7' in said, said
    assert (tmp_path/'a'/'run'/'log.jsonl').read_bytes() == log and not (tmp_path/'b'/'run'/'log.jsonl').exists()

def test_one_node_of_two_goes_away(tmp_path):
    "torchrun with one to two nodes: the run goes on with the node that is left, and ends as if nothing had been."
    fields = 'n=800', 'global_batch=8', 'save_every=20', 'learning_rate=1e-4' # large steps double the last bits
    (tmp_path/'whole').mkdir(); (tmp_path/'left').mkdir()
    whole = launch(tmp_path/'whole', *fields, processes=1)
    assert whole.returncode == 0, whole.stderr
    at = port()
    def agent():
        line = [sys.executable, '-m', 'torch.distributed.run', '--nnodes', '1:2', '--nproc_per_node', '1',
                '--max-restarts', '3', '--rdzv_backend', 'c10d', '--rdzv_endpoint', f'127.0.0.1:{at}', '--rdzv_id',
                'x', '--rdzv_conf', 'last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3',
                str(HERE/'launched.py'), str(tmp_path/'left'), *fields]
        return subprocess.Popen(line, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                start_new_session=True)
    first = agent()
    time.sleep(2)
    second, log = agent(), tmp_path/'left'/'run'/'log.jsonl'
    while first.poll() is None and not (log.exists() and log.read_bytes().count(b'\n') > 30): time.sleep(.05)
    processes = json.loads((tmp_path/'left'/'run'/'stage.json').read_text())['processes']
    children = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(second.pid)], capture_output=True, text=True).stdout
    for pid in [second.pid, *map(int, children.split())]: os.kill(pid, signal.SIGKILL)
    second.communicate()
    err = first.communicate(timeout=600)[1]
    assert first.returncode == 0, err[-3000:]
    one, two = result(tmp_path/'whole'), result(tmp_path/'left')
    assert (processes, two['processes'], two['steps']) == (2, 1, one['steps'])
    same_end(tmp_path/'whole', tmp_path/'left')

@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_another_number_of_processes(tmp_path, before, after):
    "A run that was stopped goes on in another number of processes, and ends as one that nothing happened to."
    fields = 'n=48', 'global_batch=8', 'save_every=2', 'learning_rate=1e-4'
    (tmp_path/'whole').mkdir(); (tmp_path/'moved').mkdir()
    assert launch(tmp_path/'whole', *fields, processes=before).returncode == 0
    launch(tmp_path/'moved', *fields, 'at=3', f'signal={int(signal.SIGTERM)}', processes=before)
    assert not (tmp_path/'moved'/'result.json').exists()
    done = launch(tmp_path/'moved', *fields, processes=after)
    assert done.returncode == 0, done.stderr[-3000:] + (tmp_path/'moved'/'error.txt').read_text()
    same_end(*(tmp_path/o for o in ('whole', 'moved')))
    assert (result(tmp_path/'whole')['processes'], result(tmp_path/'moved')['processes']) == (before, after)
