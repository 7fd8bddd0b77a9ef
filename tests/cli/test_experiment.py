"""`aligngpt run` in processes: whole, again, changed, stopped with Ctrl-C, and killed at fifty random points (KILLS says
how many), with its children or alone; it ends with what an undisturbed one leaves, byte by byte."""
import os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest, yaml
from aligngpt.core.files import read_json
from world import differing, world

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get('KILLS', 50))
ROOT = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
SAID = dict(device='cpu', batch_size=4, log_every=1, quiet=True, learning_rate='1e-3', trackers='none', save_every=1)
FILE = dict(out='out', levels=dict(data='pairs.json', images='images', clip='clip', device='cpu', levels=8),
            pretrain=dict(SAID, model='toy'), finetune=dict(SAID, data='talks.json', images='images'),
            eval=dict(tasks='asked.jsonl', device='cpu'))


def start(folder, *more):
    return subprocess.Popen([sys.executable, '-m', 'aligngpt.cli', 'run', 'e.yaml', *more], cwd=folder, env=ENV,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                            stdin=subprocess.DEVNULL)

def whole(folder, *more):
    p = start(folder, *more)
    said = p.communicate()[0]
    assert p.returncode == 0, said
    return said

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    d = world(tmp_path_factory.mktemp('place'))
    (d/'e.yaml').write_text(yaml.safe_dump(FILE, sort_keys=False))
    return d

@pytest.fixture(scope='module')
def undisturbed(place):
    since = time.monotonic()
    whole(place)
    return shutil.move(place/'out', place/'whole'), time.monotonic() - since

def plan(folder, *more):
    "Stage -> what would be done."
    return {l.split()[0]: l.split()[1] for l in whole(folder, '--dry-run', *more).splitlines()
            if l.split()[:1] and l.split()[0] in FILE}


def test_again_and_changed(place, undisturbed):
    "Nothing is made twice; another number of levels is made with what depends on it, and the old results stay."
    shutil.copytree(undisturbed[0], place/'out')
    assert set(plan(place).values()) == {'done'}
    assert plan(place, '--set', 'eval.batch_size=2') == dict.fromkeys(('levels', 'pretrain', 'finetune'), 'done') | {
        'eval':'runs'}
    assert 'levels: 8 -> 4' in whole(place, '--only', 'pretrain', '--set', 'levels.levels=4')
    assert len([*(place/'out').glob('pretrain-*')]) == 2 and set(plan(place).values()) == {'done'}
    again = next((place/'out').glob('eval-*'))/'experiment.yaml'
    done = subprocess.run([sys.executable, '-m', 'aligngpt.cli', 'run', again], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count('unchanged') == 4, done.stderr
    shutil.rmtree(place/'out')

def test_ctrl_c(place):
    "A stage that is stopped saves what it has, and the code says so."
    p = start(place)
    while not [*(place/'out').glob('finetune-*/checkpoint-1/complete.json')]: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    said = p.communicate()[0]
    assert p.returncode == 130 and 'finetune: stopped' in said and 'Traceback' not in said, said
    assert plan(place)['finetune'] == 'goes'
    shutil.rmtree(place/'out')

def test_killed(place, undisturbed):
    want, seconds = undisturbed
    draw, kills, ended = random.Random(int(os.environ.get('SEED', 0))), 0, 0
    while kills < KILLS:
        p = start(place)
        try: p.communicate(timeout=draw.uniform(0, seconds*.6))
        except subprocess.TimeoutExpired:
            if draw.random() < .7: os.killpg(p.pid, signal.SIGKILL)
            else: p.kill() # and what it started goes on
            p.stdout.close(); p.wait()
            kills += 1
            continue
        assert p.returncode == 0
        assert differing(want, place/'out') == []
        shutil.rmtree(place/'out')
        ended += 1
    whole(place)
    assert differing(want, place/'out') == []
    print(f'{kills} kills, {ended + 1} ends')
