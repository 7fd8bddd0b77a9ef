"""Levels by Ray: those of one machine, byte for byte, with ties and hostile inputs; a process that is killed, slow or one
too many; stores; memory. Needs `ray[data]`, and `moto[server]` with `s3fs` for S3; figures are printed (`-s`)."""
import importlib.util, json, os, random, signal, subprocess, sys, time
from pathlib import Path

import psutil, pytest
from aligngpt.core.errors import AlignGPTError
from aligngpt.levels.alignment import read_scores
from aligngpt.levels.ray import ShardJob, ray_levels
from aligngpt.levels.scoring import levels

ROOT = str(Path(__file__).resolve().parents[2])
needs_ray = pytest.mark.skipif(not importlib.util.find_spec('ray'), reason="needs aligngpt[ray]")
pytestmark = [pytest.mark.slow, needs_ray]
TURNS = int(os.environ.get('TURNS', 1)) # of what is timed
os.environ.update(RAY_USAGE_STATS_ENABLED='0', RAY_worker_niceness='0') # by itself 15, behind all else on the machine


@pytest.fixture(scope='module')
def ray():
    "Two CPUs, whatever there are."
    import ray
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False,
             logging_level='error')
    yield ray
    ray.shutdown()

def row(k, caption, image='0.png'):
    return dict(id=k, image=image, conversations=[{'from':'human', 'value':'<image>'}, {'from':'gpt', 'value':caption}])

def shards(folder, n=24, size=64, caption=lambda k: 'a '*(k*7919 % 97 + 1)):
    "Lines about one picture."
    from PIL import Image
    (folder/'images').mkdir(parents=True); (folder/'shards').mkdir()
    Image.new('RGB', (8, 8)).save(folder/'images'/'0.png')
    for s in range(n):
        text = ''.join(json.dumps(row(k, caption(k))) + '\n' for k in range(s*size, (s+1)*size))
        (folder/'shards'/f'{s:03}.jsonl').write_text(text)
    return folder

def files(folder): return sorted((folder/'shards').glob('*.jsonl'))

def length(image, text): return len(text)

def work(seconds):
    "A scorer that needs so much time of a processor; a process that is stopped gets none."
    def busy(image, text):
        end = time.process_time() + seconds
        while time.process_time() < end: pass
        return len(text)
    return busy

def together(folder):
    "All shards of levels as one table."
    import pyarrow as pa, pyarrow.parquet as pq
    return pa.concat_tables(pq.read_table(p) for p in sorted(Path(folder).glob('*.parquet'))).replace_schema_metadata()

def same(folder, one, done, local):
    "Are the shards of levels what one machine has made?"
    theirs = read_scores(one.with_suffix('.parquet'))[0].replace_schema_metadata()
    ours = together(folder)
    ours = ours.filter(ours['score'].is_valid()).select(theirs.schema.names)
    assert ours.equals(theirs)
    assert {k:done[k] for k in ('pairs', 'counts', 'edges', 'scorer', 'cut', 'skipped')} == {
        k:local[k] for k in ('pairs', 'counts', 'edges', 'scorer', 'cut', 'skipped')}

def by_ray(folder, out='levels', actors=2, workers=0, clip=length, n=8, **more):
    job = ShardJob(more.pop('data', folder/'shards'), clip, folder/out, folder/'images', workers=workers, **more)
    return ray_levels(job, n, actors=actors, quiet=True)


def test_ties_and_a_real_encoder(ray, tmp_path):
    "All scores equal; a CLIP, whose last bits depend on the batch; batches that do not divide a shard."
    from aligngpt.testing.fixtures import tiny_clip
    folder = shards(tmp_path/'d', 5, 21)
    tiny_clip(folder/'clip', 'a red circle')
    for name, clip in (('ties', lambda image, text: 1.), ('clip', folder/'clip')):
        local = levels(files(folder), folder/'images', clip=str(clip) if name == 'clip' else clip,
                       out=folder/f'{name}.json', batch_size=8, quiet=True)
        clip = str(clip) if name == 'clip' else clip
        for actors, workers in ((2, 0), (1, 1))[:2 if name == 'clip' else 1]:
            done = by_ray(folder, f'{name}-{actors}', actors, workers, clip, batch_size=8, device='cpu')
            same(folder/f'{name}-{actors}', folder/f'{name}.json', done, local)

def test_hostile(ray, tmp_path):
    "What the web puts into data: the same pairs are left out, and each has a reason."
    from aligngpt.data.images import Sources
    from aligngpt.testing.hostile import hostile_inputs, write_hostile
    data, images = write_hostile(tmp_path/'h', hostile_inputs())
    lines = data.read_bytes().splitlines(keepends=True)
    (tmp_path/'shards').mkdir()
    for s in range(4): (tmp_path/'shards'/f'{s}.jsonl').write_bytes(b''.join(lines[s::4]))
    sources = Sources(files(tmp_path), images, policy='skip', cap=1.)
    local = levels(sources, clip=length, out=tmp_path/'one.json', quiet=True)
    job = ShardJob(tmp_path/'shards', length, tmp_path/'levels', images, workers=0, policy='skip', cap=1.)
    done = ray_levels(job, quiet=True)
    same(tmp_path/'levels', tmp_path/'one.json', done, local)
    t = together(tmp_path/'levels')
    assert t['reason'].null_count == local['pairs'] and t['score'].null_count == len(t) - local['pairs']

def test_one_too_many(ray, tmp_path):
    folder = shards(tmp_path/'d', 3)
    begun = time.monotonic()
    with pytest.raises(AlignGPTError, match='3 processes that score take 3 CPUs, and Ray has 2: it would wait'):
        by_ray(folder, actors=3)
    with pytest.raises(AlignGPTError, match='take 4 CPUs'): by_ray(folder, actors=None, workers=3)
    assert time.monotonic() - begun < 5
    assert by_ray(folder, actors=None)['pairs'] == 192 # as many as there are CPUs: nothing waits

def test_the_cap_is_of_all(ray, tmp_path):
    "Two of 160 pairs are bad, and one in a hundred may be: refused with any number of processes, and again."
    folder = shards(tmp_path/'d', 10, 16)
    for s in (2, 7):
        p = folder/'shards'/f'{s:03}.jsonl'
        p.write_text(p.read_text().replace('0.png', 'gone.png', 1))
    for actors in (2, 1):
        for _ in range(2):
            with pytest.raises(AlignGPTError, match='2 of 160 pairs cannot be used, more than the 1.0%'):
                by_ray(folder, f'l{actors}', actors, policy='skip')
    assert not (folder/'l1'/'levels.json').exists()
    assert by_ray(folder, 'l1', 1, policy='skip', cap=.02)['skipped'] == 2
    with pytest.raises(AlignGPTError, match=r'002.jsonl: row 0 .*gone.png: no such image'): by_ray(folder, 'l3', 1)


SCRIPT = """
import os, sys, time
sys.path.insert(0, sys.argv[4])
import test_ray
import ray
from pathlib import Path
ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False, logging_level='error')
folder, out, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
t = time.monotonic()
done = test_ray.by_ray(folder, out, clip=test_ray.work(seconds))
print('took', time.monotonic() - t, done['pairs'], flush=True)
"""

def start(folder, out, seconds=.002):
    return subprocess.Popen([sys.executable, '-c', SCRIPT, str(folder), out, str(seconds), str(Path(__file__).parent)],
                            env=dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)

def scorers(p):
    "The processes of Ray that score."
    with_names = [(c, c.cmdline()) for c in psutil.Process(p.pid).children(recursive=True) if c.is_running()]
    return [c for c,line in with_names if line and 'MapWorker' in line[0]]

def written(folder, out): return len(list((folder/out).glob('*.parquet')))

def ended(p):
    said, err = p.communicate(timeout=900)
    assert p.returncode == 0, err[-3000:]
    return float(said.split('took ')[1].split()[0])

def until(p, condition):
    while not condition():
        assert p.poll() is None, p.communicate()
        time.sleep(.02)

def test_a_killed_process(tmp_path):
    "One of two is killed in the middle; nobody does anything about it."
    folder = shards(tmp_path/'d', 40, 150)
    ratios = []
    for turn in range(TURNS):
        peace = ended(start(folder, f'peace{turn}', .006))
        p = start(folder, f'killed{turn}', .006)
        until(p, lambda: written(folder, f'killed{turn}') >= 12)
        random.Random(turn).choice(scorers(p)).kill()
        ratios.append(ended(p)/peace)
        assert together(folder/f'killed{turn}').equals(together(folder/f'peace{turn}'))
    print(f'\none of two processes killed: {sorted(ratios)[len(ratios)//2]:.2f} of the time without, {ratios}')

def test_a_slow_process(tmp_path):
    "One of two has a quarter of the speed."
    folder = shards(tmp_path/'d', 40, 150)
    ratios = []
    for turn in range(TURNS):
        peace = ended(start(folder, f'peace{turn}', .006))
        p = start(folder, f'slow{turn}', .006)
        until(p, lambda: written(folder, f'slow{turn}') >= 2)
        begun, left = time.monotonic(), 40 - written(folder, f'slow{turn}')
        slow = scorers(p)[-1]
        while p.poll() is None and slow.is_running() and written(folder, f'slow{turn}') < 40:
            for s, seconds in ((signal.SIGSTOP, .3), (signal.SIGCONT, .1)):
                if slow.is_running(): slow.send_signal(s)
                time.sleep(seconds)
        seconds = time.monotonic() - begun
        if slow.is_running(): slow.send_signal(signal.SIGCONT)
        ended(p)
        ratios.append(seconds/(left/40*peace*2/1.25))
        assert together(folder/f'slow{turn}').equals(together(folder/f'peace{turn}'))
    print(f'\none of two processes at a quarter of the speed: {sorted(ratios)[len(ratios)//2]:.2f} of ideal, {ratios}')

def test_throughput(tmp_path):
    "Pairs a second of two processes, once they run, against one process without Ray, twice."
    folder = shards(tmp_path/'d', 40, 100)
    begun = time.monotonic()
    levels(files(folder)[:10], folder/'images', clip=work(.006), out=tmp_path/'one.json', workers=0, quiet=True)
    alone = 1000/(time.monotonic() - begun)
    p = start(folder, 'ray', .006)
    def when(n):
        until(p, lambda: written(folder, 'ray') >= n)
        return time.monotonic()
    first, last = when(4), when(36)
    ended(p)
    share = 3200/(last - first)/(2*alone)
    print(f'\ntwo processes of Ray: {share:.3f} of twice the pairs a second of one without')
    assert share > .8 # of a machine with other work; the figure of a quiet one is printed

def test_killed_and_again(tmp_path):
    "The command itself is killed: finished shards are kept, and the result is the same."
    folder = shards(tmp_path/'d', 20, 64)
    ended(start(folder, 'peace', .004))
    p = start(folder, 'again', .004)
    until(p, lambda: written(folder, 'again') >= 6)
    for c in [*psutil.Process(p.pid).children(recursive=True), p]: c.kill()
    p.communicate()
    kept = {f.name:f.stat().st_ino for f in (folder/'again').glob('*.parquet')}
    ended(start(folder, 'again', .004))
    assert together(folder/'again').equals(together(folder/'peace'))
    assert len(kept) >= 6 and not list((folder/'again').glob('.*.tmp'))
