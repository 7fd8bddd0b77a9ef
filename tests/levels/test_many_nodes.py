"Several nodes: one is gone, one is slow, each opens new data, and what one process refuses all of them refuse."
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import pytest
from PIL import Image
from aligngpt.core.shards import Shards

ROOT = str(Path(__file__).resolve().parents[2])
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false',
       'PYTHONPATH':os.pathsep.join([ROOT, os.environ.get('PYTHONPATH', '')])}
SCRIPT = """
import sys, time
from aligngpt.data.images import Sources
from aligngpt.levels.scoring import levels
data, images, out, pause, policy = sys.argv[1:]
def length(image, text):
    for _ in range(round(float(pause)/.01)): time.sleep(.01) # a process that is stopped sleeps on, but no longer
    return len(text)
levels(Sources(data, images, policy=policy), clip=length, out=out, batch_size=8, workers=0, quiet=True)
"""


def pairs(folder, n=160, bad=()):
    "Pairs of one picture; those in `bad` name another one."
    def turns(i): return [{'from':'human', 'value':'<image>'}, {'from':'gpt', 'value':'a '*(i*7919 % n + 1)}]
    (folder/'images').mkdir()
    Image.new('RGB', (8, 8)).save(folder/'images'/'a.png')
    rows = [dict(id=i, image='gone.png' if i in bad else 'a.png', conversations=turns(i)) for i in range(n)]
    (folder/'pairs.json').write_text(json.dumps(rows))

def start(folder, out, rank=0, world=1, pause=0., policy='error', before=()):
    "One process of so many."
    return subprocess.Popen([*before, sys.executable, '-c', SCRIPT, str(folder/'pairs.json'), str(folder/'images'),
                             str(folder/out), str(pause), policy],
                            env={**ENV, 'RANK':str(rank), 'WORLD_SIZE':str(world)}, stderr=subprocess.PIPE, text=True)

def ended(p, seconds=300):
    "(exit code, standard error)"
    err = p.communicate(timeout=seconds)[1]
    return p.returncode, err

def both(folder, out): return (folder/out).read_bytes(), (folder/out).with_suffix('.parquet').read_bytes()

@pytest.fixture
def peace(tmp_path):
    "A folder with pairs, and their levels made by one process."
    pairs(tmp_path)
    code, err = ended(start(tmp_path, 'peace.json'))
    assert code == 0, err
    return tmp_path

def test_a_node_that_never_comes_and_one_that_is_killed(peace):
    code, err = ended(start(peace, 'alone.json', 0, 2))
    assert (code, both(peace, 'alone.json')) == (0, both(peace, 'peace.json')), err
    first, second = (start(peace, 'two.json', r, 2, pause=.01) for r in (0, 1))
    shard = peace/'two.scores'/'rank-1'/'scores.jsonl'
    while not shard.exists() and second.poll() is None: time.sleep(.01)
    second.send_signal(signal.SIGKILL); ended(second)
    code, err = ended(first)
    assert (code, both(peace, 'two.json')) == (0, both(peace, 'peace.json')), err
    assert not (peace/'two.scores'/'claims').exists()

def lame(process, busy):
    "Let a process run a quarter of the time, as long as others are busy; what a sleep of 10 ms takes meanwhile."
    naps = []
    while busy() and process.poll() is None:
        for s, seconds in ((signal.SIGSTOP, .3), (signal.SIGCONT, .1)):
            if process.poll() is None: process.send_signal(s)
            began, n = time.perf_counter(), 0
            while time.perf_counter() - began < seconds and busy(): time.sleep(.01); n += 1
            naps.append((time.perf_counter() - began)/max(n, 1))
    if process.poll() is None: process.send_signal(signal.SIGCONT)
    return sum(naps)/len(naps)

@pytest.mark.slow
@pytest.mark.parametrize('world', [2, 3])
def test_a_slow_node_does_not_decide(world, tmp_path):
    "The last of the nodes has a quarter of the speed. The ratio to the best there could be is printed, not asserted."
    n, pause = 400, .04
    pairs(tmp_path, n)
    assert ended(start(tmp_path, 'peace.json'))[0] == 0
    runs = [start(tmp_path, 'slow.json', r, world, pause) for r in range(world)]
    shards, tail = Shards(tmp_path/'slow.scores'), {}
    def scored():
        tail.update((e['batch'], e) for e in shards.news())
        return 8*len(tail)
    while not len(list(tmp_path.glob('slow.scores/rank-*/scores.jsonl'))) == world and runs[0].poll() is None: pass
    begun, left = time.perf_counter(), n - scored()
    nap = lame(runs[-1], lambda: scored() < n and runs[0].poll() is None)
    seconds, best = time.perf_counter() - begun, left*pause*nap/.01/(world - .75)
    print(f'\n{world} nodes, one at a quarter of the speed: {seconds:.1f} s for {left} pairs, {best:.1f} s at best: '
          f'{seconds/best:.2f}')
    assert [ended(p)[0] for p in runs] == [0]*world
    assert both(tmp_path, 'slow.json') == both(tmp_path, 'peace.json')
    counts = [(tmp_path/'slow.scores'/f'rank-{r}'/'scores.jsonl').read_bytes().count(b'"batch"') for r in range(world)]
    assert counts[0] > counts[-1], counts

@pytest.mark.slow
def test_the_cap_is_of_all_processes_and_all_starts(tmp_path):
    pairs(tmp_path, bad=range(0, 160, 80)) # two of 160, and one in a hundred may be bad
    for world in (1, 2):
        for _ in range(2): # and the next start
            runs = [start(tmp_path, f'{world}.json', r, world, policy='skip') for r in range(world)]
            done = [ended(p) for p in runs]
            assert done[0][0] == 1 and 'more than the 1.0%' in done[0][1], (world, done)
    assert not list(tmp_path.glob('*.parquet'))

@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('unshare') or subprocess.run(['unshare', '-Urpf', 'true'],
                                                                  capture_output=True).returncode,
                    reason='no namespaces here')
def test_two_nodes_open_new_data_at_once(tmp_path):
    pairs(tmp_path)
    script = ('import sys; from aligngpt.data.records import Records; '
              'print(len(Records(sys.argv[1], quiet=True)[:]))')
    for i in range(20):
        shutil.rmtree(tmp_path/'pairs.json.index', ignore_errors=True)
        nodes = []
        for node in 'ab':
            home = tmp_path/node
            home.mkdir(exist_ok=True)
            nodes.append(subprocess.Popen(['unshare', '-Urpf', '--mount-proc', sys.executable, '-c', script,
                                           tmp_path/'pairs.json'],
                                          env={**ENV, 'HOME':str(home), 'XDG_CACHE_HOME':str(home)}, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        said = [n.communicate(timeout=120) for n in nodes]
        assert [s[0].strip() for s in said] == ['160', '160'], (i, said)
    assert not list(tmp_path.glob('.pairs.json.index.*.tmp'))
