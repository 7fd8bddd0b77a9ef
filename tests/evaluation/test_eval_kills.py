"The real `aligngpt eval`, killed, divided and interrupted: in the end the same file, byte for byte."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest
from PIL import Image

ROOT = str(Path(__file__).resolve().parents[2])
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1',
       'PYTHONPATH':os.pathsep.join([ROOT, os.environ.get('PYTHONPATH', '')])}

BRAKED = """
import os, time
from aligngpt.cli.main import main
from aligngpt.evaluation.run import AnswerFile
add, most = AnswerFile.add, int(os.environ['BRAKE'])
def braked(self, rows): # with so many answers on the disk, this process waits to be killed
    add(self, rows)
    while self.path.read_bytes().count(b'\\n') >= most: time.sleep(1)
AnswerFile.add = braked
main()
"""


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A trained toy, 60 pictures and 1,500 questions about them; `few.jsonl` has the first 240."
    from aligngpt.model.toy import toy
    d = tmp_path_factory.mktemp('place')
    for part in toy(): part.save_pretrained(d/'toy')
    rng = np.random.default_rng(0)
    for i in range(60): Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(d/f'{i}.png')
    (d/'braked.py').write_text(BRAKED)
    rows = [dict(question_id=i, image=f'{i%60}.png', text='What colour is it?' + ' Why?'*(i%25), answer='red')
            for i in range(1500)]
    for name, n in (('many', 1500), ('few', 240)):
        (d/f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows[:n])) + '\n')
    return d

def arguments(place, name, out):
    return ['eval', place/'toy', '--tasks', place/f'{name}.jsonl', '--out', out, '--device', 'cpu', '--batch-size',
            '4']

def whole(place, name, out, launcher=(sys.executable,)):
    "A run to its end: (answers file, results)."
    r = subprocess.run([*map(str, [*launcher, '-m', 'aligngpt.cli', *arguments(place, name, out)])], env=ENV,
                       capture_output=True, text=True, timeout=3600)
    assert r.returncode == 0, r.stderr[-3000:]
    score = json.loads((out/name/'score.json').read_text())
    return (out/name/'answers.jsonl').read_bytes(), {k:v for k,v in score.items() if k != 'predictions'}

def answered(out, name): return sum(p.read_bytes().count(b'\n') for p in (out/name/'parts').glob('*'))

def start(place, name, out, brake, launcher=(sys.executable,)):
    "A run in the background; each of its processes waits when it has written `brake` answers."
    return subprocess.Popen(list(map(str, [*launcher, place/'braked.py', *arguments(place, name, out)])),
                            env={**ENV, 'BRAKE':str(brake)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def killed(place, name, out, at, wait=0., ahead=0):
    "Start a run, and kill -9 it at `at` answers or not many more than `ahead` further ones; how many it had then."
    run = start(place, name, out, at + ahead)
    try:
        while run.poll() is None and answered(out, name) < at: time.sleep(.002)
        time.sleep(wait) # somewhere in what it does next
    finally: run.send_signal(signal.SIGKILL); run.wait()
    return answered(out, name) if run.returncode == -signal.SIGKILL else None

def test_two_kills_and_two_processes(place, tmp_path):
    want = whole(place, 'few', tmp_path/'whole')
    had = [killed(place, 'few', tmp_path/'killed', at) for at in (40, 140)]
    assert all(h is not None and a <= h < 240 for h,a in zip(had, (40, 140))), had
    assert whole(place, 'few', tmp_path/'killed') == want
    both = whole(place, 'few', tmp_path/'two',
                 (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'))
    assert both == want
    assert len(json.loads(want[0].split(b'\n')[0])['text']) > 0 and len(want[0].splitlines()) == 240

@pytest.mark.slow
def test_ten_kills(place, tmp_path):
    "Ten points drawn at random: while the model is loaded, while it answers, in the middle of a write or beside it."
    want, draw = whole(place, 'many', tmp_path/'whole'), random.Random(int(os.environ.get('SEED', 0)))
    points = sorted(draw.randrange(1400) for _ in range(9))
    had = ([killed(place, 'many', tmp_path/'killed', 0, draw.uniform(0, 4), 40)]
           + [killed(place, 'many', tmp_path/'killed', at, draw.uniform(0, .02), 40) for at in points])
    print('killed with so many answers of 1,500 on the disk:', had)
    assert None not in had
    assert whole(place, 'many', tmp_path/'killed') == want

@pytest.mark.slow
def test_kills_in_two_processes(place, tmp_path):
    "Both of two processes, killed three times; then one process does what is left."
    want, launch = whole(place, 'many', tmp_path/'whole'), [sys.executable, '-m', 'torch.distributed.run',
        '--standalone', '--nproc_per_node', '2']
    for at in (200, 600, 1000):
        run = start(place, 'many', tmp_path/'two', at//2 + 40, launch)
        while run.poll() is None and answered(tmp_path/'two', 'many') < at: time.sleep(.002)
        workers = list(map(int,
                           # torchrun gives each a session of its own
Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()))
        assert len(workers) == 2
        for pid in (*workers, run.pid): os.kill(pid, signal.SIGKILL)
        run.wait()
        while any(Path(f'/proc/{pid}/cmdline').exists() and Path(f'/proc/{pid}/cmdline').read_bytes()
                  for pid in workers):
            time.sleep(.01)
    assert whole(place, 'many', tmp_path/'two') == want
