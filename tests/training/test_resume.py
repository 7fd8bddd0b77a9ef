"""Runs that are killed, stopped, or meet a full disk, and go on to the numbers of a run that nothing happened to."""
import functools, json, multiprocessing, os, random, signal, time

import pytest, torch
from safetensors.torch import load_file

import launched

STEPS, SETTINGS = 20, ('batch_size=4', 'max_steps=20', 'save_every=2', 'shuffle=true', 'group=modality')


@pytest.fixture(scope='module')
def start():
    "Start a run in a process of its own."
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['launched'])
    def go(*args):
        p = ctx.Process(target=launched.main, args=[str(a) for a in args])
        p.start()
        return p
    return go

def finish(p):
    p.join(3600)
    assert p.exitcode is not None, 'the run hangs'
    return p.exitcode

def step_of(folder):
    "The last step in the log of a run."
    log = folder/'run'/'log.jsonl'
    lines = log.read_text().splitlines() if log.exists() else []
    return json.loads(lines[-1])['step'] if lines else 0

def same(a, b):
    "Two runs ended with the same losses and weights, to the bit."
    ra, rb = (json.loads((p/'result.json').read_text()) for p in (a, b))
    assert ra['losses'] == rb['losses'] and len(ra['losses']) == STEPS
    wa, wb = (load_file(p/'run'/'model'/'model.safetensors') for p in (a, b))
    assert wa.keys() == wb.keys() and all(torch.equal(wa[k], wb[k]) for k in wa)

@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    "Folders of runs that nothing happened to, by stage."
    @functools.cache
    def run(stage):
        out = tmp_path_factory.mktemp(f'whole-{stage}')
        assert finish(start(out, f'stage={stage}', *SETTINGS)) == 0
        return out
    return run


@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_kill(start, whole, stage, tmp_path):
    "kill -9 at ten random points, most of them while a checkpoint is written."
    rng = random.Random(stage)
    for at in sorted(rng.randrange(STEPS-5) for _ in range(10)):
        p = start(tmp_path, f'stage={stage}', *SETTINGS)
        while step_of(tmp_path) < at and p.is_alive(): time.sleep(.002)
        time.sleep(rng.random()*.1)
        os.kill(p.pid, signal.SIGKILL)
        assert finish(p) in (-signal.SIGKILL, 0) # it may have been faster
    assert finish(start(tmp_path, f'stage={stage}', *SETTINGS)) == 0
    same(tmp_path, whole(stage))

def test_stop(start, whole, tmp_path):
    "A scheduler's SIGTERM: the run saves, and the exit code tells."
    assert finish(start(tmp_path, *SETTINGS, 'at=7', f'signal={int(signal.SIGTERM)}')) == 143
    assert (tmp_path/'run'/'checkpoint-8'/'complete.json').exists()
    assert finish(start(tmp_path, *SETTINGS)) == 0
    same(tmp_path, whole('finetune'))

def test_full_disk(start, whole, tmp_path):
    "A disk that is full while a checkpoint is written costs the steps since the last one, and nothing else."
    assert finish(start(tmp_path, *SETTINGS, 'at=7', 'limit=20000')) == 1
    assert 'the disk is full' in (tmp_path/'error.txt').read_text()
    assert not (tmp_path/'run'/'checkpoint-8').exists() and (tmp_path/'run'/'checkpoint-6').exists()
    assert finish(start(tmp_path, *SETTINGS)) == 0
    same(tmp_path, whole('finetune'))

def test_keep(whole):
    "The last two checkpoints stay."
    assert sorted(p.name
                  for p in (whole('finetune')/'run').glob('checkpoint-*')) == ['checkpoint-18', 'checkpoint-20']
