"""Two processes do what one does: batches of mixed modality, ZeRO-2 and ZeRO-3, FSDP, and a process that dies."""
import json, signal

import pytest
from safetensors.torch import load_file

from launching import SHARDINGS, launch, need, result

pytestmark = pytest.mark.slow
STEPS = 50


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    "Losses of one process, by stage."
    out = {}
    for stage in ('pretrain', 'finetune'):
        tmp = tmp_path_factory.mktemp(f'one-{stage}')
        done = launch(tmp, f'stage={stage}', 'batch_size=4', f'max_steps={STEPS}', processes=1)
        assert done.returncode == 0, done.stderr[-2000:]
        out[stage] = tmp
    return out

@pytest.mark.parametrize('sharding', SHARDINGS)
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_two_are_one(stage, sharding, one, tmp_path):
    "50 steps; in each the second process has text only."
    need(sharding)
    done = launch(tmp_path, f'stage={stage}', 'batch_size=2', f'max_steps={STEPS}', f'sharding={sharding}')
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = result(one[stage]), result(tmp_path)
    assert b['processes'] == 2 and len(b['losses']) == STEPS
    difference = max(abs(x-y) for x, y in zip(a['losses'], b['losses']))
    print(f'{stage} {sharding}: losses differ by at most {difference:.1e}')
    assert difference < 1e-5
    wa, wb = (load_file(p/'run'/'model'/'model.safetensors') for p in (one[stage], tmp_path))
    assert wa.keys() == wb.keys()
    assert max((wa[k]-wb[k]).abs().max().item() for k in wa) < 1e-3
    told = [json.loads((p/'run'/'model'/'config.json').read_text())['history'] for p in (one[stage], tmp_path)]
    assert told[0] == told[1] and [s['step'] for s in told[0]] == [stage] # every process adds its stage to its own copy

@pytest.mark.parametrize('sharding', ['zero2', 'zero3'])
def test_dead_process(sharding, one, tmp_path):
    "One of two processes is killed at step 25; the run goes on from the last checkpoint to the same losses."
    need(sharding)
    fields = 'batch_size=2', f'max_steps={STEPS}', f'sharding={sharding}', 'save_every=10'
    dead = launch(tmp_path, *fields, 'at=25', 'rank=1', f'signal={int(signal.SIGKILL)}')
    assert dead.returncode != 0
    assert (tmp_path/'run'/'checkpoint-20'/'complete.json').exists() and not (tmp_path/'result.json').exists()
    done = launch(tmp_path, *fields)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = result(one['finetune'])['losses'], result(tmp_path)['losses']
    difference = max(abs(x-y) for x, y in zip(a, b))
    print(f'{sharding}: losses after the restart differ by at most {difference:.1e}')
    assert len(b) == STEPS and difference < 1e-5

@pytest.mark.parametrize('sharding,before,after',
                         [('none', 1, 2), ('none', 2, 1), ('fsdp', 2, 4), ('zero2', 2, 4), ('zero3', 2, 4),
                          ('zero3', 4, 2), ('zero3-offload', 2, 4)])
def test_other_number(sharding, before, after, one, tmp_path):
    "A run that was killed goes on with another number of processes and the same global batch."
    need(sharding)
    def go(processes, *fields):
        return launch(tmp_path, f'batch_size={4//processes}', f'max_steps={STEPS}', 'save_every=10',
                      f'sharding={sharding}', *fields, processes=processes)
    assert go(before, 'at=25', f'signal={int(signal.SIGKILL)}').returncode != 0
    assert (tmp_path/'run'/'checkpoint-20'/'complete.json').exists() and not (tmp_path/'result.json').exists()
    done = go(after)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = result(one['finetune'])['losses'], result(tmp_path)['losses']
    difference = max(abs(x-y) for x, y in zip(a, b, strict=True))
    print(f'{sharding}, {before} process(es), then {after}: losses differ by at most {difference:.1e}')
    assert difference < 1e-5

@pytest.mark.parametrize('sharding', ['none', 'zero2', 'zero3'])
def test_adapters(sharding, tmp_path):
    "Adapters of two processes are those of one, and are saved whole."
    need(sharding)
    pytest.importorskip('peft')
    def go(name, processes, *fields):
        (tmp_path/name).mkdir()
        done = launch(tmp_path/name, f'batch_size={4//processes}', 'max_steps=20', 'lora=4', *fields,
                      processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
        return result(tmp_path/name)['losses'], {f.name:load_file(f)
                                                 for f in (tmp_path/name/'run'/'model').glob('*.safetensors')}
    (a, one), (b, two) = go('one', 1), go('two', 2, f'sharding={sharding}')
    difference = max(abs(x-y) for x, y in zip(a, b, strict=True))
    print(f'{sharding}: losses differ by at most {difference:.1e}')
    assert difference < 1e-5 and a[-1] < a[0] and len(one) == 2 and one.keys() == two.keys()
    for f in one:
        assert one[f].keys() == two[f].keys()
        for k in one[f]: assert one[f][k].shape == two[f][k].shape and (one[f][k] - two[f][k]).abs().max() < 1e-4, k

@pytest.mark.parametrize('sharding', SHARDINGS)
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_bf16(stage, sharding, one, tmp_path):
    "Half the precision, as on GPUs: the losses of full precision to the digits that there are."
    need(sharding)
    done = launch(tmp_path, f'stage={stage}', 'batch_size=2', f'max_steps={STEPS}', 'precision=bf16',
                  f'sharding={sharding}')
    assert done.returncode == 0, done.stderr[-2000:]
    assert result(tmp_path)['losses'][:20] == pytest.approx(result(one[stage])['losses'][:20], abs=.02)
