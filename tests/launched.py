"""A run of a tiny model on batches of mixed modality, for the launchers to start: see test_distributed.py.

    torchrun --nproc_per_node 2 tests/launched.py OUT [FIELD=VALUE ...]

`OUT/result.json` gets the losses, `OUT/weights.safetensors` the trained weights. Fields are those of
`StageConfig`;
further: `stage` (pretrain or finetune), `n` (samples), `lora` (rank of adapters, without dropout), `device`,
and at step `at`, in all processes or in `rank` alone, a `signal`
or a `limit` on the size of files.
"""
import json, os, resource, signal, sys
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
if 'device=cuda' not in sys.argv: os.environ['DS_ACCELERATOR'] = 'cpu'
import torch
from transformers import CLIPVisionConfig, LlamaConfig, TrainerCallback, set_seed
from transformers.utils import logging

from aligngpt.checkpoints.adapters import add_lora
from aligngpt.data.batches import Collator
from aligngpt.core.errors import AlignGPTError
from aligngpt.model.layers import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.training.stage import FINETUNE, PRETRAIN, StageData, override, run_stage

torch.set_num_threads(1)
RANK = int(os.environ.get('RANK', 0))


def tiny_model(use_gate):
    set_seed(0)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                              image_size=16, patch_size=8)
    text = LlamaConfig(vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    return AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision, text_config=text, align_token_id=60,
                                                           image_token_id=61, use_gate=use_gate))


class Mixed(torch.utils.data.Dataset):
    "Random tokens. In every row of four the first two have pictures: unshuffled, one of two processes gets text only."
    fingerprint = 'mixed'
    def __init__(self, n, levels):
        self.n, self.levels, self.has_image, self.lengths = n, levels, [i%4 < 2 for i in range(n)], [12]*n
    def __len__(self): return self.n
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        k = self.has_image[i]*(1 + (i%8 == 0))
        draw = lambda n: torch.randint(3, 60, (n,), generator=g).tolist()
        prompt, answer = [1] + [60]*(k > 0) + [61]*4*k + draw(5), draw(1 + i%5)
        sample = dict(input_ids=torch.tensor(prompt + answer), labels=torch.tensor([-100]*len(prompt) + answer))
        if k:
            sample |= (dict(pixel_values=torch.randn(k, 3, 16, 16, generator=g))
                       | (dict(alignment=i%8) if self.levels else {}))
        return sample


class Accident(TrainerCallback):
    "At a step, send this process a signal, or let the disk be full."
    def __init__(self, step, number, limit): self.step, self.number, self.limit = step, number, limit
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step != self.step: return
        if self.limit: resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        else: os.kill(os.getpid(), self.number)


def main(out, *fields):
    fields = dict(f.split('=', 1) for f in fields if not f.startswith('--'))
    read = lambda k, default: json.loads(fields.pop(k)) if k in fields else default
    levels, n = fields.pop('stage', 'finetune') == 'pretrain', read('n', 40)
    lora, device = read('lora', 0), fields.pop('device', 'cpu')
    at, rank, number, limit = read('at', None), read('rank', None), read('signal', int(signal.SIGKILL)), read('limit', 0)
    base = dict(learning_rate=5e-3, batch_size=2, accumulate=1, group='none', shuffle=False, warmup=2,
                precision='fp32', log_every=1, save_every=0, sharding='none', checkpointing=False)
    stage = override(PRETRAIN if levels else FINETUNE,
                     **base | {k:v if isinstance(getattr(FINETUNE, k), str) else json.loads(v)
                               for k,v in fields.items()})
    logging.set_verbosity_error(); logging.disable_progress_bar()
    # the kernels that DeepSpeed would compile for a CPU take longer than the test
    if device == 'cpu' and stage.sharding not in ('none', 'fsdp'):
        import deepspeed.ops
        getattr(deepspeed.ops, '__compatible_ops__')['deepspeed_shm_comm'] = False
    accident = [Accident(at, number, limit)] if at is not None and rank in (None, RANK) else []
    valid = Mixed(6, levels) if stage.eval_every else None
    model = tiny_model(not levels)
    if lora: add_lora(model, lora, 2*lora, dropout=0)
    try:
        done = run_stage(model, StageData(Mixed(n, levels), Collator(0), valid), stage, Path(out)/'run',
                         device=device,
                         quiet=True, callbacks=accident)
    except AlignGPTError as e:
        (Path(out)/'error.txt').write_text(str(e))
        sys.exit(getattr(e, 'code', 1))
    if RANK == 0:
        (Path(out)/'result.json').write_text(json.dumps(done | dict(processes=int(os.environ.get('WORLD_SIZE', 1)))))


if __name__ == '__main__': main(*sys.argv[1:])
