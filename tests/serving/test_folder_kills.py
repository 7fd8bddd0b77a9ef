"""The real `aligngpt answer`, killed at random points and divided among processes: in the end the same files, byte for
byte, and no piece answered twice."""
import json, multiprocessing, os, random, shutil, signal, subprocess, sys, time

import pytest

import world
from launching import port

pytestmark = pytest.mark.slow
KILLS, TRIES = 20, 100 # kills that count, and how often they are tried: a process may be faster than its killer
OUTPUTS = 'said.jsonl', 'said.csv', 'said.parquet', 'said.json', '%02d.tar', 'texts'
PIECES = 20 # of 16 questions each


@pytest.fixture(scope='module')
def start():
    "Start a command in a process of its own, which has imported everything."
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['world', 'aligngpt.cli.main', 'aligngpt.serving.folders',
                                'aligngpt.checkpoints.layouts'])
    def go(*args):
        p = ctx.Process(target=world.process, args=[str(a) for a in args])
        p.start()
        return p
    return go

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    d = world.world(tmp_path_factory.mktemp('place'), pictures=160)
    (d/'images'/'broken.jpg').write_bytes(b'<html>')
    (d/'images'/'notes.md').write_text('Mine.')
    return d

def line(place, out):
    "Two questions about each of 161 pictures, one at a time."
    return ['answer', place/'images', '--model', place/'toy', '--device', 'cpu', '--batch-size', 1, '--out', out,
            '--ask', 'What colour is it?', '--ask', 'Describe it.', '--max-new-tokens', 24]

def batches(folder):
    "The numbers of the pieces that were answered, in the order of their lines."
    lines = [l for f in folder.rglob('answers.jsonl') for l in f.read_bytes().split(b'\n') if l]
    return [json.loads(l[9:])['batch'] for l in lines if l.endswith(b'}')]

def test_twenty_kills(start, place, tmp_path):
    "While the model is loaded, while it answers, while a line or the output is written."
    draw, want, took = random.Random(int(os.environ.get('SEED', 0))), {}, 0
    for name in OUTPUTS:
        begin, out = time.monotonic(), tmp_path/'whole'/name.strip('%')/name
        p = start(*line(place, out)); p.join()
        assert p.exitcode == 0
        want[name], took = world.files(out.parent), time.monotonic() - begin
    hits, at = [], tmp_path/'killed'
    for n in range(TRIES):
        name = OUTPUTS[n % len(OUTPUTS)]
        p = start(*line(place, at/name))
        time.sleep(draw.uniform(0, took))
        p.kill(); p.join()
        if p.exitcode == -signal.SIGKILL:
            hits.append(len(batches(at)))
            p = start(*line(place, at/name)); p.join()
            assert p.exitcode == 0
            assert sorted(batches(at)) == list(range(PIECES + 1))
            got, whole = world.files(at), want[name]
            assert {k for k in whole | got if got.get(k) != whole.get(k) and 'rank-' not in k} == set()
        shutil.rmtree(at, ignore_errors=True)
        if len(hits) == KILLS: break
    print('killed with so many pieces of', PIECES + 1, 'on the disk:', hits)
    assert len(hits) == KILLS and len(set(hits)) > 5

def test_two_processes(start, place, tmp_path):
    one, two = tmp_path/'one.jsonl', tmp_path/'two.jsonl'
    p = start(*line(place, one)); p.join()
    assert p.exitcode == 0
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join(sys.path), 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1'}
    r = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port',
                        str(port()), '-m', 'aligngpt.cli', *map(str, line(place, two))], env=env, capture_output=True,
                       text=True, timeout=1800)
    assert r.returncode == 0, r.stderr[-3000:]
    assert one.read_bytes() == two.read_bytes()
    each = {f.parent.name:len(f.read_bytes().splitlines()) for f in (tmp_path/'two.answers').rglob('answers.jsonl')}
    assert set(each) == {'rank-0', 'rank-1'} and min(each.values()) > 0, each
    assert not (tmp_path/'two.answers'/'claims').exists()
