"""How quick is a language model in llama.cpp beside torch? `python tests/exports/hybrid_speed.py RUN` opens a
checkpoint by each engine, lets them answer in turn, and prints medians of the processor's time on one thread: for a
prompt, and for each token after it. By hand, where llama-cpp-python is installed."""
import argparse, statistics, time

import torch
from torch import nn

from aligngpt.checkpoints.layouts import open_model
from aligngpt.exports.hybrid import BITS, open_hybrid
from aligngpt.model.decoding import Ask, ask_batch, ask_row

TEXT = 'The quick brown fox jumps over the lazy dog near the river bank. '*14 + 'What happened?'


class Packed(nn.Module):
    "A linear layer in 8 bits, by torch's own kernel."
    def __init__(self, layer, dtype):
        super().__init__()
        w = layer.weight.detach().float()
        scale = w.abs().amax(1)/127
        self.weight, self.scale = (w/scale[:, None]).round().to(torch.int8), scale.to(dtype)

    def forward(self, x):
        y = torch.ops.aten._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
        return y.view(*x.shape[:-1], -1)


def packed(run, dtype):
    "A model whose language model is packed."
    model, processor = open_model(run, 'cpu', dtype)
    layers = [n for n,m in model.named_modules() if 'language_model' in n and type(m) is nn.Linear]
    for n in (*layers, 'lm_head'): model.set_submodule(n, Packed(model.get_submodule(n), getattr(torch, dtype)))
    return model, processor


@torch.inference_mode()
def timed(model, batch, n=24):
    "Milliseconds for the prompt, and for each of `n` tokens."
    cache, mask, start = model.new_cache(), batch['attention_mask'], time.process_time()
    def likeliest(**how):
        return model(cache=cache, use_cache=True, logits_to_keep=1, **how).logits[:, -1].argmax(-1, True)
    token = likeliest(**batch)
    middle = time.process_time()
    for _ in range(n):
        mask = torch.cat([mask, mask.new_ones(1, 1)], 1)
        token = likeliest(input_ids=token, attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1)
    return 1e3*(middle - start), 1e3*(time.process_time() - middle)/n


def main(run, repeats):
    torch.set_num_threads(1)
    ways = {f'torch {t}':open_model(run, 'cpu', t) for t in ('float32', 'bfloat16')}
    ways |= {f'torch, 8 bits, {t}':packed(run, t) for t in ('float32', 'bfloat16')}
    ways |= {f'llama.cpp {b} bits':open_hybrid(run, b, 'cpu') for b in BITS}
    processor = ways['torch float32'][1]
    batch = ask_batch([ask_row(processor, Ask(0, TEXT))], [None], {}, None, 0)
    found = {k:[] for k in ways}
    for k,(m,_) in ways.items(): timed(m, batch, 1) # the first one is slower
    for _ in range(repeats):
        for k,(m,_) in ways.items(): found[k].append(timed(m, batch))
    print(f"prompt of {batch['input_ids'].shape[1]} tokens; ms")
    for k,v in found.items(): print(f'{k:26}' + ''.join(f'{statistics.median(x):10.1f}' for x in zip(*v)))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('run')
    parser.add_argument('--repeats', type=int, default=5)
    main(**vars(parser.parse_args()))
