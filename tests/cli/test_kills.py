"""kill -9 at twenty random points of each of four moments: between the last checkpoint and `done.json`, while a
checkpoint is saved, while the store of tower features is filled, and while an archive is unpacked in place. After each
the same command is run again, and leaves what it leaves undisturbed, byte by byte."""
import io, multiprocessing, os, random, shutil, signal, tarfile, time

import numpy as np, pytest

import world
from world import differing, finetune, pretrain

pytestmark = pytest.mark.slow
KILLS, TRIES = 20, 200 # kills that count, and how often they are tried: a process may be faster than its killer


@pytest.fixture(scope='module')
def start():
    "Start a command in a process of its own, which has imported everything."
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['world', 'aligngpt.cli.main', 'aligngpt.training.recipes', 'aligngpt.data.archives'])
    def go(*args):
        p = ctx.Process(target=world.process, args=[str(a) for a in args])
        p.start()
        return p
    return go

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return world.world(tmp_path_factory.mktemp('place'), pictures=200)

def kill_at(p, reached, wait):
    "Kill a process when something is reached and a while has gone by; was it killed?"
    while p.is_alive() and not reached(): time.sleep(.0002)
    time.sleep(wait)
    if p.is_alive(): os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert p.exitcode in (0, -signal.SIGKILL)
    return p.exitcode != 0

def twenty(kill, restart):
    "`kill(draw)` until it has hit the moment twenty times, and `restart()` after each."
    draw, hits = random.Random(int(os.environ.get('SEED', 0))), 0
    for n in range(1, TRIES + 1):
        hit = kill(draw)
        restart(hit)
        hits += hit
        if hits == KILLS: print(f'{hits} kills in {n} tries'); return
    raise AssertionError(f'only {hits} of {TRIES} kills hit the moment')

def again(start, want, out, args):
    "Run the command to its end, and compare what it left; then all begins anew."
    def run(hit):
        if hit:
            p = start(*args)
            p.join()
            assert p.exitcode == 0
            assert differing(want.parent, out.parent) == []
        shutil.rmtree(out.parent)
        out.parent.mkdir()
    return run

@pytest.fixture
def trial(start, place, tmp_path):
    "A stage as (arguments, its folder, what it leaves if nobody kills it): a function of more arguments."
    def make(stage, *more):
        out = [tmp_path/name/'run' for name in ('whole', 'killed')]
        for o in out: o.parent.mkdir()
        args = [stage(o, *[m(o) if callable(m) else m for m in more]) for o in out]
        p = start(*args[0]); p.join()
        assert p.exitcode == 0
        return args[1], out[1], out[0]
    return make

@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_between_the_last_checkpoint_and_the_end(start, place, trial, stage):
    build = dict(pretrain=lambda o, *more: pretrain(place, o, *more),
                 finetune=lambda o, *more: finetune(place, place/'toy', o, *more))[stage]
    args, out, want = trial(build, '--max-steps', 6, '--save-every', 3)
    def kill(draw):
        done = kill_at(start(*args), (out/'checkpoint-6'/'complete.json').exists, draw.uniform(0, .1))
        return done and not (out/'done.json').exists()
    twenty(kill, again(start, want, out, args))

def test_in_the_save_of_a_checkpoint(start, place, trial):
    args, out, want = trial(lambda o, *more: finetune(place, place/'toy', o, *more), '--max-steps', 6,
                            '--save-every', 2)
    def kill(draw):
        c = out/f'checkpoint-{draw.choice((2, 4, 6))}'
        return kill_at(start(*args), c.exists, draw.uniform(0, .08)) and c.exists() and not (c/'complete.json').exists()
    twenty(kill, again(start, want, out, args))

def test_in_the_fill_of_the_feature_store(start, place, trial):
    args, out, want = trial(lambda o, *more: pretrain(place, o, *more), '--max-steps', 2, '--features',
                            lambda o: o.parent/'features')
    sums = out.parent/'features'/'sums.bin'
    def filled(): return np.count_nonzero(np.fromfile(sums, 'uint32')) if sums.exists() else -1
    def kill(draw):
        n = draw.choice((0, 0, 1, 65, 129))
        return kill_at(start(*args), lambda: filled() >= n, draw.uniform(0, .03)) and filled() < 200
    twenty(kill, again(start, want, out, args))

def test_in_unpack_in_place(start, tmp_path):
    from aligngpt.data.archives import HEAD
    b, out = io.BytesIO(), tmp_path/'killed'
    with tarfile.open(fileobj=b, mode='w') as t:
        e = tarfile.TarInfo('x.bin'); e.size = 1 << 22
        t.addfile(e, io.BytesIO(random.Random(0).randbytes(e.size)))
    archive = b.getvalue()
    film, note = out/'images.tar.mp4', out/'images.tar.mp4.unpacking'
    args = 'unpack', film
    def put(): out.mkdir(exist_ok=True); film.write_bytes(HEAD + archive[len(HEAD):] + archive[:len(HEAD)])
    def kill(draw):
        put()
        reached = note.exists if draw.random() < .7 else (lambda: True) # the note is there from before the first change
        return kill_at(start(*args), reached, draw.uniform(0, .004))
    def run(hit):
        if film.exists() or note.exists():
            p = start(*args); p.join()
            assert p.exitcode == 0
        assert {p.name:p.read_bytes() for p in out.iterdir()} == {'images.tar':archive}
        shutil.rmtree(out)
    twenty(kill, run)
