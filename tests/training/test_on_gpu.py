"""What only a GPU can show: the same runs as on a CPU, to the precision at hand. Skipped without CUDA."""
import importlib.util

import pytest, torch
from launching import SHARDINGS, launch, need, result
from small import CHATS, batch, build

pytestmark = pytest.mark.gpu
STEPS, CLOSE = 20, dict(fp32=5e-3, bf16=.1, fp16=.05) # fp32 multiplies in TF32


def run(folder, *fields, processes=1):
    folder.mkdir()
    done = launch(folder, 'stage=finetune', f'batch_size={4//processes}', f'max_steps={STEPS}', *fields,
                  processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    return result(folder)['losses']


@pytest.mark.parametrize('precision', CLOSE)
def test_training(precision, tmp_path):
    "The losses of a CPU."
    assert run(tmp_path/'gpu', 'device=cuda', f'precision={precision}') == pytest.approx(run(tmp_path/'cpu'),
        abs=CLOSE[precision])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
@pytest.mark.parametrize('sharding', SHARDINGS)
def test_two_gpus(sharding, tmp_path):
    "Mixed modality, text alone on the second GPU: the losses of one."
    need(sharding)
    assert run(tmp_path/'two', 'device=cuda', f'sharding={sharding}',
               processes=2) == pytest.approx(run(tmp_path/'one', 'device=cuda'), abs=CLOSE['fp32'])


@torch.no_grad()
def test_generation():
    "Logits and greedy answers of a CPU."
    inputs, model = batch(CHATS), build()
    cpu, told = model(**inputs).logits, model.generate(**inputs, max_new_tokens=20, do_sample=False)
    model, inputs = model.cuda(), {k:v.cuda() for k,v in inputs.items()}
    try:
        seen = inputs['attention_mask'].bool()
        assert (model(**inputs).logits[seen].cpu() - cpu[seen.cpu()]).abs().max() < 1e-3
        for cache in ('dynamic', 'static'):
            assert model.generate(**inputs, max_new_tokens=20, do_sample=False,
                                  cache_implementation=cache).cpu().equal(told)
    finally: model.cpu()


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec('flash_attn') is None, reason='needs flash-attn')
def test_flash_attention():
    "Packed samples through the kernel for rows of varying length: the losses of one sample at a time."
    model = build().cuda().bfloat16()
    model.language_model.set_attn_implementation('flash_attention_2')
    rows = [batch([c], prompt=False) for c in CHATS]
    ids = [o['input_ids'] for o in rows]
    pixels = torch.cat([o['pixel_values'] for o in rows if 'pixel_values' in o]).cuda().bfloat16()
    packed = dict(input_ids=torch.cat(ids, 1),
                  position_ids=torch.cat([torch.arange(o.shape[1])[None] for o in ids], 1),
                  sample_ids=torch.cat([torch.full_like(o, i) for i,o in enumerate(ids)], 1))
    packed = {k:v.cuda() for k,v in packed.items()}
    flash = model(**packed, pixel_values=pixels, use_cache=False).logits
    model.language_model.set_attn_implementation('sdpa')
    assert (flash - model(**packed, pixel_values=pixels, use_cache=False).logits).abs().max() < .1
