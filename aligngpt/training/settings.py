import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.core.errors import AlignGPTError, os_errors
from aligngpt.core.files import check_fetched
from aligngpt.core.values import check_name, read_value

@dataclass(frozen=True)
class StageConfig:
    "All that fixes one stage of training (paper, section 4.1)."
    name: str # 'pretrain' or 'finetune', or a name of your own
    train: tuple[str,...] # parts that learn: 'projector', 'levels', 'gate', 'language_model', 'vision_tower'
    use_levels: bool = False # give each pair's alignment level to the model (pre-training); else the gate decides
    some_levels: bool = False # give the level of those records that have one; the gate decides about the others
    learning_rate: float = 2e-5 # peak, of all parts that `part_rates` does not name
    part_rates: dict[str,float] = field(default_factory=dict) # learning rates of single parts, e.g. {'projector': 2e-5}
    schedule: str = 'cosine' # any scheduler type of transformers
    warmup: float = 0.03 # share of the steps if below 1, else a number of steps
    weight_decay: float = 0. # of matrices; biases, norms and levels have none
    max_grad_norm: float = 1. # 0 switches clipping off
    epochs: float = 1. # passes over the data
    max_steps: int = -1 # overrides `epochs` if positive
    batch_size: int = 16 # samples (or packed rows) per device and step
    accumulate: int = 1 # batches per optimizer step
    global_batch: int = 0 # samples per step of all processes together: decides `accumulate`; 0 leaves it
    max_length: int = 2048 # tokens of a sample, image tokens included
    template: str = 'v1' # conversation template
    image_aspect_ratio: str = 'pad' # 'pad' to a square, or a 'square' crop
    gate_norm: bool = False # a new gate centres and scales what it reads over the image tokens
    pack: int = 0 # pack samples into rows of so many positions, `batch_size` rows at a time; 0: a row for each sample
    group: str = 'modality' # batches of samples of the same modality and similar length: 'modality', or 'none'
    shuffle: bool = True # draw the samples in an order that seed and epoch decide
    precision: str = 'auto' # 'auto', 'fp32', 'bf16', 'fp16'
    checkpointing: bool = True # recompute activations in the backward pass
    sharding: str = 'none' # among processes: 'none', 'zero2', 'zero3', 'zero3-offload', 'fsdp', or a DeepSpeed JSON
    seed: int = 42 # of the order of the samples, and of all chance in training
    save_every: float = 500 # optimizer steps between checkpoints, or a share of the run if below 1; 0 for none
    keep: int = 2 # checkpoints that stay; 0 for all
    log_every: int = 10 # optimizer steps between log lines
    eval_every: float = 0 # optimizer steps between evaluations; 0 for none
    show: int = 2 # answers generated at each evaluation
    watch: bool = True # look whether the run is healthy, for less than a hundredth of its time
    workers: int = 0 # processes that prepare data
    trackers: tuple[str,...] = () # 'tensorboard', 'wandb', 'trackio', ...
    said: tuple[str,...] = field(default=(), compare=False, repr=False) # fields that `override` replaced; no setting

    @property
    def levels(self)->bool|str:
        "The levels that samples carry, as `SampleDataset` takes it."
        return 'some' if self.some_levels else self.use_levels

PRETRAIN = StageConfig('pretrain', train=('projector', 'levels'), use_levels=True, learning_rate=1e-3, batch_size=8,
                       accumulate=4, template='plain', image_aspect_ratio='square', group='none', sharding='zero2')
FINETUNE = StageConfig('finetune', train=('language_model', 'projector', 'gate'), learning_rate=2e-5, batch_size=16,
                       sharding='zero3')

def override(
    stage:StageConfig, # to start from
    **changes, # fields to replace; None leaves a field as it is
)->StageConfig:
    "A copy of `stage` with some fields replaced; unknown fields and wrong types are errors."
    changes = {k:read_setting(k, v) for k,v in changes.items() if v is not None}
    return dataclasses.replace(stage, **changes, said=tuple(dict.fromkeys((*stage.said, *changes))))

CHOICES = dict(
    group=('modality', 'none'),
    precision=('auto', 'fp32', 'bf16', 'fp16'),
    image_aspect_ratio=('pad', 'square')) # fields with a few values only
KINDS = {f.name:f.type for f in dataclasses.fields(StageConfig) if f.name != 'said'} # what a field holds

def read_setting(
    name:str, # a field of `StageConfig`
    value:Any, # as typed, as YAML has it, or as it is
)->Any: # the field's value
    "Read a field's value."
    check_name(name, KINDS, 'Unknown training option')
    value = read_value(value, KINDS[name], f'training option {name}')
    if name in CHOICES: check_name(value, CHOICES[name], f'training option {name}: got')
    return value

def given(
    stage:StageConfig, # of a user
)->set[str]: # names of fields
    "The fields that the user said: those that `override` replaced, and those that differ from the release."
    base, fields = _release(stage), [f.name for f in dataclasses.fields(stage) if f.compare]
    return {*stage.said} | {k for k in fields if getattr(stage, k) != getattr(base, k)}

def fill_in(
    stage:StageConfig, # of a user
    **values, # fields of a preset
)->StageConfig: # with the values for all fields that the user did not say
    "Let a preset decide what the user left open."
    mine = given(stage)
    return dataclasses.replace(override(stage, **{k:v for k,v in values.items() if k not in mine}),
                               said=tuple(sorted(mine)))

def origins(
    stage:StageConfig, # resolved
    preset:str='', # name of the model whose preset was filled in
)->dict[str,str]: # field -> 'given', the preset's name, 'release', or 'installed' for trackers
    "Where each setting came from."
    base = _release(stage)
    def origin(k):
        if k in stage.said: return 'given'
        if getattr(stage, k) == getattr(base, k): return 'release'
        return 'installed' if k == 'trackers' else preset or 'default'
    return {f.name:origin(f.name) for f in dataclasses.fields(stage) if f.compare and f.name != 'name'}

def _release(stage):
    "The release's stage of that name, or a stage of its own."
    return next((s for s in (PRETRAIN, FINETUNE) if s.name == stage.name), stage)

def spread(
    stage:StageConfig, # of a user
    processes:int, # that share each step
)->StageConfig: # with the accumulation that its `global_batch` asks for
    "Share the samples of a step among processes."
    n, b = stage.global_batch, stage.batch_size
    if not n: return stage
    if n % (b*processes) == 0: return dataclasses.replace(stage, accumulate=n//(b*processes))
    sizes = [k for k in range(1, b) if n % (k*processes) == 0]
    raise AlignGPTError(f'global_batch {n} is no multiple of batch_size {b} times {processes} processes',
                        f"use batch_size {', '.join(map(str, sizes))}" if sizes else
                        f'use a number of processes that divides {n}')

def read_yaml(
    path:str|Path, # a file of `key: value` lines
)->dict: # what it says
    "Read a YAML file."
    import yaml
    with os_errors(path): text = Path(path).read_text(encoding='utf-8')
    check_fetched(path, text.encode())
    try: found = yaml.safe_load(text) or {}
    except yaml.YAMLError as e:
        raise AlignGPTError(f'{path}: not valid YAML: {" ".join(str(e).split())}',
                            'indent with spaces, and put a space after each colon') from e
    if not isinstance(found, dict):
        raise AlignGPTError(f'{path}: holds {type(found).__name__}, expected `key: value` lines')
    return {str(k):v for k,v in found.items()}

def read_settings(
    path:str|Path, # a YAML file
)->dict: # by the names of fields
    "Read settings."
    return {k.replace('-', '_'):v for k,v in read_yaml(path).items()}