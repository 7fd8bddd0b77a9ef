"""Training on shards in turn: the same losses for any number of workers and processes, after a stop anywhere, and
from a store; what needs all of the data is refused."""
import json, os, random, shutil, subprocess, sys, time
from pathlib import Path

import fsspec, psutil, pytest
from aligngpt.core.files import read_json
from world import STAGE, command, world

ROOT = str(Path(__file__).resolve().parents[2])
ENV = dict(os.environ, PYTHONPATH=ROOT, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
KILLS = int(os.environ.get('KILLS', 6))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Twenty-four pairs in five shards of different sizes."
    d = world(tmp_path_factory.mktemp('stream'))
    rows = json.loads((d/'pairs.json').read_text())
    (d/'shards').mkdir()
    for k, (a, b) in enumerate(((0, 7), (7, 9), (9, 15), (15, 16), (16, 24))):
        (d/'shards'/f'{k}.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows[a:b]))
    return d

def line(place, out, *more):
    return ['pretrain', '--stream', '--data', place/'shards', '--images', place/'images', '--model', place/'toy',
            '--out', out, *STAGE, '--accumulate', 1, '--sharding', 'none', '--save-every', 1, '--keep', 0, *more]

def losses(out): return read_json(out/'done.json')['losses']

@pytest.fixture(scope='module')
def undisturbed(place):
    code, said = command(*line(place, place/'whole', '--epochs', 2))
    assert code == 0, said
    return losses(place/'whole')

def close(a, b): assert len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b)) < 1e-5, (a, b)


def test_steps_and_a_stop_in_the_middle(place, undisturbed, tmp_path):
    "Two epochs of 24 samples in batches of 4 are 12 steps; from a checkpoint the same losses follow."
    assert len(undisturbed) == 12
    assert read_json(place/'whole'/'checkpoint-6'/'stream.json')['place'][-1] == 24
    run = shutil.copytree(place/'whole', tmp_path/'run')
    for p in (run/'done.json', run/'log.jsonl'): p.unlink()
    for p in (run/'model', *(run/f'checkpoint-{k}' for k in range(5, 13))): shutil.rmtree(p)
    code, said = command(*line(place, run, '--epochs', 2))
    assert code == 0, said
    assert losses(run) == undisturbed

def test_finished_but_for_the_model(place, undisturbed, tmp_path):
    run = shutil.copytree(place/'whole', tmp_path/'run')
    (run/'done.json').unlink()
    shutil.rmtree(run/'model')
    code, said = command(*line(place, run, '--epochs', 2))
    assert code == 0 and losses(run) == undisturbed and (run/'model'/'config.json').exists(), said

def test_refused(place, tmp_path):
    for more, what in ((('--pack', 64), 'pack'), (('--valid', '.2'), 'valid'), (('--top', '.5'), 'top'),
                       (('--group', 'modality'), 'group'), (('--features', tmp_path/'f'), 'features')):
        code, said = command(*line(place, tmp_path/'run', *more))
        assert code == 1 and f'{what}: needs all of the data at once' in said, said
    assert not (tmp_path/'run'/'stage.json').exists()
    code, said = command(*line(place, tmp_path/'run', '--levels', '4-7', '--max-steps', 2))
    assert code == 0, said

def process(*words, launcher=()):
    return subprocess.Popen([*(launcher or [sys.executable]), '-m', 'aligngpt.cli', *map(str, words)], env=ENV,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

def torchrun(n): return [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(n), '--standalone']

@pytest.mark.slow
@pytest.mark.parametrize('world, workers', [(1, 2), (2, 0), (2, 1), (4, 0)])
def test_any_number(place, undisturbed, tmp_path, world, workers):
    "The same samples in the same steps."
    p = process(*line(place, tmp_path/'run', '--epochs', 2, '--batch-size', 4//world, '--workers', workers),
                launcher=torchrun(world) if world > 1 else ())
    said = p.communicate()[0]
    assert p.returncode == 0, said[-3000:]
    close(losses(tmp_path/'run'), undisturbed)

@pytest.mark.slow
def test_killed(place, undisturbed, tmp_path):
    "Killed at random moments, with other numbers of processes and workers each time."
    draw, words = random.Random(0), line(place, tmp_path/'run', '--epochs', 2, '--global-batch', 4)
    kills = 0
    for n in range(KILLS):
        world, workers = draw.choice((1, 2)), draw.choice((0, 1, 2))
        p = process(*words, '--batch-size', 4//world, '--workers', workers,
                    launcher=torchrun(world) if world > 1 else ())
        begun, end = [*(tmp_path/'run').glob('checkpoint-*')], time.monotonic() + 200
        while len([*(tmp_path/'run').glob('checkpoint-*')]) <= len(begun) and p.poll() is None:
            assert time.monotonic() < end
            time.sleep(.05)
        time.sleep(draw.uniform(0, .5))
        kills += p.poll() is None
        for o in [*psutil.Process(p.pid).children(recursive=True), p] if p.poll() is None else (): o.kill()
        p.communicate()
    p = process(*words, '--batch-size', 4)
    said = p.communicate()[0]
    assert p.returncode == 0, said[-2000:]
    close(losses(tmp_path/'run'), undisturbed)
    print(kills, 'kills')

def test_from_a_store(place, undisturbed, tmp_path, monkeypatch):
    "A shard at a time; nothing of it stays, and its length is not asked for."
    monkeypatch.setenv('ALIGNGPT_CACHE', str(tmp_path/'cache'))
    fsspec.filesystem('memory').put(str(place/'shards'), '/shards-in-store', recursive=True)
    words = line(place, tmp_path/'run')
    words[words.index('--data') + 1] = 'memory://shards-in-store'
    code, said = command(*words)
    assert code == 1 and 'say how long to train: --max-steps' in said, said
    code, said = command(*words, '--max-steps', 12)
    assert code == 0, said
    assert losses(tmp_path/'run') == undisturbed
    assert [*(tmp_path/'cache').rglob('*.jsonl')] == []
