"""The commands of the guide to training, as they stand there but for the size: each launcher gives the losses of a
plain `aligngpt finetune`."""
import json, os, shutil, socket, subprocess, sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT, BIN = Path(__file__).resolve().parents[2], Path(sys.executable).parent
COMMON = ('--device cpu --precision fp32 --epochs 1 --group none --no-shuffle --learning-rate 1e-3 --log-every 1 '
          '--no-checkpointing --quiet').split()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A model, pictures and sixteen conversations, a few of them without a picture."
    from aligngpt.model.toy import COLOURS, swatch, toy
    d = tmp_path_factory.mktemp('place')
    for part in toy(): part.save_pretrained(d/'model')
    (d/'images').mkdir()
    for c in COLOURS: swatch(c).save(d/'images'/f'{c}.png')
    def record(i, c):
        seen = {} if i % 4 == 3 else dict(image=f'{c}.png')
        return dict(id=str(i), **seen, conversations=[{'from':'human',
                                                       'value':'<image>\n'*bool(seen) + 'What colour is it?'},
                                                       {'from':'gpt', 'value':f'It is {c}.'*(1 + i%3)}])
    (d/'talks.json').write_text(json.dumps([record(i, list(COLOURS)[i % len(COLOURS)]) for i in range(16)]))
    return d


def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

def environment(**more):
    "This interpreter's commands first, one thread, no hub; nothing of a launcher around us."
    clean = {k:v for k,v in os.environ.items()
             if k not in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
             and not k.startswith(('SLURM_', 'OMPI_', 'PMI_', 'MPI_'))}
    return clean | dict(PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}',
                        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
                        OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', DS_ACCELERATOR='cpu') | more

def arguments(place, out, *more, data='talks.json'):
    return ['finetune', '--model', place/'model', '--data', place/data, '--images', place/'images', '--out',
            out, *COMMON, *more]

def run(command, place, out, *more):
    done = subprocess.run([*map(str, command), *map(str, arguments(place, out, *more))], env=environment(),
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return losses(out)

def losses(out):
    return [o['loss'] for o in map(json.loads, (out/'log.jsonl').read_text().splitlines()) if 'loss' in o]

PLAIN = [sys.executable, '-m', 'aligngpt.cli']

@pytest.fixture(scope='module')
def alone(place):
    "Losses of one process without a launcher."
    found = run(PLAIN, place, place/'alone', '--batch-size', '4', '--sharding', 'none')
    assert len(found) == 4
    return found

def same(found, alone): assert found == pytest.approx(alone, abs=1e-5)


LAUNCHERS = dict(
    torchrun=lambda: ['torchrun', '--standalone', '--nproc_per_node', '2', '-m', 'aligngpt.cli'],
    accelerate=lambda: ['accelerate', 'launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1',
                        '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', port(), '-m',
                        'aligngpt.cli'],
    deepspeed=lambda: ['deepspeed', '--num_gpus', '2', '--no_local_rank', '--master_port', port(), '--module',
                       'aligngpt.cli'])

@pytest.mark.parametrize('name', LAUNCHERS)
def test_launcher(name, place, alone, tmp_path):
    if name == 'deepspeed': pytest.importorskip('deepspeed')
    same(run(LAUNCHERS[name](), place, tmp_path/'run', '--batch-size', '2', '--sharding', 'none'), alone)


NAMES = dict(
    srun=('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_STEP_NUM_TASKS', 'SLURM_NTASKS_PER_NODE'),
    mpirun=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_SIZE'),
    hydra=('PMI_RANK', 'MPI_LOCALRANKID', 'PMI_SIZE', 'MPI_LOCALNRANKS'))

@pytest.mark.parametrize('name', NAMES)
def test_told_by_variables_alone(name, place, alone, tmp_path):
    "A process per task, as SLURM and MPI start them: the guide's script for SLURM sets nothing more."
    def task(rank):
        told = dict(zip(NAMES[name], (str(rank), str(rank), '2', '2')), SLURM_STEP_NUM_NODES='1', MASTER_PORT=at)
        line = arguments(place, tmp_path/'run', '--batch-size', '2', '--sharding', 'none')
        return subprocess.Popen([*PLAIN, *map(str, line)], env=environment(**told), stderr=subprocess.PIPE, text=True)
    at = port()
    tasks = [task(0), task(1)]
    for t in tasks:
        err = t.communicate(timeout=600)[1]
        assert t.returncode == 0, err[-3000:]
    same(losses(tmp_path/'run'), alone)


BAD = range(40, 1000, 60)

@pytest.fixture(scope='module')
def holes(place):
    "A thousand conversations; the pictures of sixteen are missing."
    def talk(i):
        name = f'gone/{i}.png' if i in BAD else 'red.png'
        return dict(id=str(i), image=name, conversations=[{'from':'human', 'value':'<image>\nWhat?'},
                                                          {'from':'gpt', 'value':'It is red.'}])
    (place/'images'/'gone').mkdir()
    (place/'holes.json').write_text(json.dumps([talk(i) for i in range(1000)]))
    return place

@pytest.mark.parametrize('name', ['alone', 'torchrun'])
def test_the_cap_is_of_all_processes_and_starts(name, holes, tmp_path):
    "Ten of a thousand may be bad: sixteen are refused by one process and by two, and by the next start."
    command, batch = (PLAIN, 20) if name == 'alone' else (LAUNCHERS[name](), 10)
    line = [*command, *arguments(holes, tmp_path/'run', '--batch-size', batch, '--sharding', 'none', '--policy', 'skip',
                                 '--cap', '0.01', '--save-every', '5', data='holes.json')]
    def start():
        done = subprocess.run([*map(str, line)], env=environment(), capture_output=True, text=True, timeout=900)
        return done.returncode, done.stderr[-3000:]
    for _ in range(2):
        code, said = start()
        assert code and 'of 1,000 samples cannot be used, more than the 1.0%' in said, said
        assert not (tmp_path/'run'/'done.json').exists()
    pictures = [holes/'images'/'gone'/f'{i}.png' for i in BAD]
    for p in pictures: shutil.copy(holes/'images'/'red.png', p)
    code, said = start() # the pictures are there: it goes on
    for p in pictures: p.unlink()
    assert code == 0 and (tmp_path/'run'/'done.json').exists(), said


def test_features(place, alone, tmp_path):
    "A cache of the tower's features changes nothing: one process fills it, two read it."
    cache = '--features', tmp_path/'features'
    same(run(PLAIN, place, tmp_path/'one', '--batch-size', '4', '--sharding', 'none', *cache), alone)
    same(run(LAUNCHERS['torchrun'](), place, tmp_path/'two', '--batch-size', '2', '--sharding', 'none', *cache),
         alone)


@pytest.mark.parametrize('kind', ['nf4', 'int8'])
def test_qlora(kind, place, tmp_path):
    "Adapters on a quantised language model learn, and the result chats."
    pytest.importorskip('bitsandbytes')
    found = run(PLAIN, place, tmp_path/'run', '--batch-size', '4', '--sharding', 'none', '--lora', '4', '--quantize',
                kind, '--epochs', '6', '--learning-rate', '1e-2')
    assert sum(found[-4:]) < .8*sum(found[:4])
    done = subprocess.run([*PLAIN, 'chat', tmp_path/'run', '--image', place/'images'/'red.png', '--device', 'cpu'],
                          input='What colour is it?\n', env=environment(), capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


def test_tower_learns(place, tmp_path):
    "An unfrozen tower with a learning rate of its own: it moves, and little."
    from aligngpt.checkpoints.layouts import load
    from aligngpt.model.modeling import part_parameters
    parts = 'language_model', 'projector', 'gate', 'vision_tower'
    run(PLAIN, place, tmp_path/'run', '--batch-size', '4', '--train', ','.join(parts), '--part-rates',
        'vision_tower=1e-6')
    before, after = (load(f)[0] for f in (place/'model', tmp_path/'run'/'model'))
    def most(part): # that a parameter moved
        old, new = (part_parameters(m, part) for m in (before, after))
        return max((new[k] - p).abs().max().item() for k,p in old.items())
    moved = {part: most(part) for part in ('vision_tower', 'projector')}
    assert 0 < moved['vision_tower'] < 1e-5 < moved['projector']
