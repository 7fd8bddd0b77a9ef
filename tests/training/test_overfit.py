"""Learning happens, and only where it should: 32 samples are learnt by heart in both stages, frozen parts stay to
the bit."""
import json

import pytest, torch

from aligngpt.data.batches import Collator, SampleDataset
from aligngpt.data.records import Records
from aligngpt.model.modeling import stored_name
from aligngpt.model.toy import COLOURS, QUESTIONS, swatch, toy, toy_answer
from aligngpt.training.stage import FINETUNE, PRETRAIN, StageData, override, run_stage

N = 32


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder with pictures, captions with levels, and conversations."
    folder = tmp_path_factory.mktemp('world')
    for i in range(N): swatch(list(COLOURS)[i % 4], shade=i - 16).save(folder/f'{i}.png')
    def record(i, q, a):
        return dict(id=i, image=f'{i}.png', similarity=i % 8,
                    conversations=[{'from': 'human', 'value': f'<image>\n{q}'}, {'from': 'gpt', 'value': a}])
    rows = dict(pretrain=[record(i, QUESTIONS[0], toy_answer(QUESTIONS[0], list(COLOURS)[i % 4])) for i in range(N)],
                finetune=[record(i, QUESTIONS[i % 3], toy_answer(QUESTIONS[i % 3], list(COLOURS)[(i + i//4) % 4]))
                          for i in range(N)])
    for k, r in rows.items(): (folder/f'{k}.json').write_text(json.dumps(r))
    return folder

def taught(stage, world, folder, **more):
    "(model, its parameters before, losses) of a toy model that learns what is in `world`."
    torch.set_num_threads(1)
    toy.cache_clear()
    model, processor = toy(100) # a language model that can speak, as one on the hub
    torch.manual_seed(0)
    with torch.no_grad(): # forget what this stage shall learn
        for part in (model.projector, model.gate):
            for m in part.modules():
                if isinstance(m, torch.nn.Linear): m.reset_parameters()
    now = override(stage, **dict(template='v1', max_steps=160, # the language model knows no other template
                   batch_size=N, accumulate=1, learning_rate=2e-2 if stage.use_levels else 5e-3, warmup=5,
                   schedule='constant_with_warmup',
                   precision='fp32', checkpointing=False, log_every=1, save_every=0, group='none') | more)
    data = SampleDataset(Records(world/f'{stage.name}.json', quiet=True), world,
                         processor.with_settings(template=now.template), levels=stage.use_levels)
    before = {n: p.clone() for n, p in model.named_parameters()}
    return model, before, run_stage(model, StageData(data, Collator(processor.tokenizer.pad_token_id)), now, folder,
                                    device='cpu', quiet=True)['losses']


@pytest.mark.parametrize('stage', [PRETRAIN, FINETUNE], ids=lambda s: s.name)
def test_overfit(stage, world, tmp_path):
    model, before, losses = taught(stage, world, tmp_path)
    assert losses[-1] < .05, losses[::10]
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) != (stored_name(n).split('.')[0] in stage.train and p.requires_grad), n


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('stage', [PRETRAIN, FINETUNE], ids=lambda s: s.name)
def test_bf16(stage, checkpointing, world, tmp_path):
    "Mixed precision begins where full precision does, to the digits it has, and learns."
    (_, _, half), (_, _, full) = (taught(stage, world, tmp_path/p, max_steps=n, precision=p,
                                         checkpointing=checkpointing) for p, n in (('bf16', 30), ('fp32', 1)))
    assert half[0] != full[0] and half[0] == pytest.approx(full[0], abs=.02) and half[-1] < .3*half[0], half
