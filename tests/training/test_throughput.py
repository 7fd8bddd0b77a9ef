"""Processor time of a training step beside transformers' Llava: the same padded batch, in turns in one process,
medians."""
import statistics, time

import pytest, torch
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, set_seed

from aligngpt.model.layers import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.settings import FINETUNE, PRETRAIN
from aligngpt.training.freezing import freeze

VISION = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=12, num_attention_heads=3, image_size=336,
              patch_size=14)
TEXT = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1024, vocab_size=32000,
            pad_token_id=0)
ALIGN, IMAGE, LLAVA_IMAGE, TOKENS = 32000, 32001, 31999, 576


def medium_batch(stage, n=8):
    "Pictures with captions (pre-training) or with a question and an answer (tuning), padded on the right."
    rng = torch.Generator().manual_seed(0)
    def length(a, b): return int(torch.randint(a, b, (1,), generator=rng))
    ids, labels = [], []
    for _ in range(n):
        prompt, answer = (0, length(10, 40)) if stage is PRETRAIN else (length(40, 120), length(30, 150))
        row = torch.cat([torch.tensor([1, ALIGN]), torch.full((TOKENS,), IMAGE),
                         torch.randint(3, 31000, (prompt + answer,), generator=rng)])
        ids.append(row)
        labels.append(row.masked_fill(torch.arange(len(row)) < len(row) - answer, -100))
    def pad(rows, value): return pad_sequence(rows, batch_first=True, padding_value=value)
    return dict(input_ids=pad(ids, 0), labels=pad(labels, -100),
                attention_mask=pad([torch.ones_like(o) for o in ids], 0),
                pixel_values=torch.randn(n, 3, 336, 336, generator=rng))


def contestants(stage):
    "Both models with the same parts trained, and the batch as each takes it."
    set_seed(0)
    batch = medium_batch(stage)
    ours = AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT), use_gate='gate' in stage.train))
    freeze(ours, stage.train)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIPVisionConfig(**VISION),
                                                      text_config=LlamaConfig(**TEXT), image_token_id=LLAVA_IMAGE,
                                                      image_token_index=LLAVA_IMAGE, vision_feature_layer=-2))
    llava.requires_grad_(False)
    trained = [llava.model.multi_modal_projector] + ([llava.model.language_model, llava.lm_head]
                                                     if 'language_model' in stage.train else [])
    for o in trained: o.requires_grad_(True)
    ids = batch['input_ids'].masked_fill(batch['input_ids'] == IMAGE,
                                         LLAVA_IMAGE).masked_fill(batch['input_ids'] == ALIGN, 5)
    return dict(ours=(ours.train(), {**batch, **(dict(alignment=torch.arange(8)) if stage.use_levels else {})}),
                llava=(llava.train(), {**batch, 'input_ids': ids}))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize('stage,least', [(PRETRAIN, 1.7), (FINETUNE, 2.)], ids=['pretrain', 'finetune'])
def test_throughput(stage, least, one_thread, turns=4):
    models, seconds = contestants(stage), dict(ours=[], llava=[])
    optimizers = {k: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-5, fused=True)
                  for k,(m,_) in models.items()}
    for turn in range(turns):
        for k,(model, batch) in models.items():
            start = time.process_time()
            model(**batch).loss.backward()
            optimizers[k].step(); optimizers[k].zero_grad()
            if turn: seconds[k].append(time.process_time() - start) # the first turn warms up
    ours, llava = (statistics.median(seconds[k]) for k in ('ours', 'llava'))
    print(f'AlignGPT {ours:.2f} s, Llava {llava:.2f} s a step: {llava/ours:.2f}x, bar {least}x') # shown by `pytest -rP`, not asserted
