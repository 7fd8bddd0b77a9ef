"""The reference implementation's losses, step by step, through `run_stage`: the path that every run takes.

The folder comes from `ALIGNGPT_REFERENCE` (by default `../shared/reference`). Each of its sub-folders that holds an
`expected.json` is tested; keys such as `adamw_lr1e-3_losses` say which steps were made.
"""
import json, os, re, shutil
from pathlib import Path

import pytest

from aligngpt.data.batches import Collator, SampleDataset
from aligngpt.checkpoints.layouts import load_parts, load_pretrained_align
from aligngpt.data.records import Records
from aligngpt.training.stage import FINETUNE, PRETRAIN, StageData, add_gate, override, run_stage

HERE = Path(__file__).resolve().parents[2]
ROOT = HERE/os.environ.get('ALIGNGPT_REFERENCE', HERE.parent/'shared'/'reference')
FOLDERS = sorted(p.parent for p in ROOT.glob('*/expected.json'))
CPU = dict(dtype='float32', device='cpu')


@pytest.fixture(params=FOLDERS or [None], ids=lambda p: p.name if p else 'absent')
def ref(request):
    "A reference folder."
    if request.param is None: pytest.skip(f'no reference numbers in {ROOT}: set ALIGNGPT_REFERENCE to their folder')
    return request.param

def check(model, processor, stage, folder, tmp):
    "Run `stage` as often as the reference did, with a new optimizer and the rate in the key; compare the losses."
    want = json.loads((folder/'expected.json').read_text())[stage.name]
    own = shutil.copy(folder/f'{stage.name}.json', tmp) # an index will lie beside it
    data = SampleDataset(Records(own, quiet=True), folder/'images', processor, levels=stage.use_levels)
    exact = dict(schedule='constant', warmup=0, max_grad_norm=0., batch_size=len(data), accumulate=1, shuffle=False,
                 precision='fp32', log_every=1, save_every=0)
    keys = [k for k in want if re.fullmatch(r'(then_)?adamw_lr[\d.e-]+_losses', k)]
    assert keys
    for key in keys:
        rate = float(re.search(r'lr([\d.e-]+)_', key)[1])
        now = override(stage, learning_rate=rate, max_steps=len(want[key]), **exact)
        done = run_stage(model, StageData(data, Collator(processor.tokenizer.pad_token_id)), now, tmp/key, processor,
                         device='cpu', quiet=True)
        assert done['losses'] == pytest.approx(want[key], rel=1e-5), key

def test_pretraining(ref, tmp_path):
    model, processor = load_pretrained_align(ref/'pretrain_init_mm_projector_align.bin', ref/'llm', ref/'clip', **CPU)
    check(model, processor, PRETRAIN, ref, tmp_path)

def test_tuning(ref, tmp_path):
    model, processor = load_pretrained_align(ref/'pretrain_out', ref/'llm', template='v1', image_aspect_ratio='pad',
                                             **CPU)
    load_parts(add_gate(model, 'full'), ref/'finetune_init_gate.bin')
    processor.gate_text = 'full'
    check(model, processor, FINETUNE, ref, tmp_path)
