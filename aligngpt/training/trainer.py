import contextlib, dataclasses
from pathlib import Path
from typing import Any

import numpy as np, torch, torch.distributed as dist
from accelerate.utils import send_to_device
from fastcore.basics import patch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import is_deepspeed_available
from transformers.utils import SAFE_WEIGHTS_NAME

from aligngpt.core.devices import pick_device
from aligngpt.core.errors import AlignGPTError
from aligngpt.core.shards import process_rank, tell_torch
from aligngpt.checkpoints.adapters import has_adapter, save_adapter
from aligngpt.training.freezing import param_groups
from aligngpt.training.runs import saving
from aligngpt.training.settings import StageConfig
from aligngpt.training.stream import SampleStream, note_place

class GroupedSampler(torch.utils.data.Sampler):
    "Sample order by seed and epoch; with `group='modality'` neighbours share modality and similar length."
    def __init__(self,
        lengths:np.ndarray|list[int], # of each sample, in tokens or anything proportional
        has_image:np.ndarray|list[bool], # modality of each sample
        chunk:int, # samples of one optimizer step on all devices
        group:str='modality', # or 'none'
        seed:int=42, # of the order
        shuffle:bool=True, # False: as they stand
    ):
        if group not in ('modality', 'none'):
            raise AlignGPTError(f"Unknown grouping {group!r}. Valid: modality, none")
        self.lengths, self.has_image = np.asarray(lengths), np.asarray(has_image, bool)
        self.chunk, self.group = chunk, group
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0

    def __len__(self): return len(self.lengths)
    def set_epoch(self,
        epoch:int, # its number; each has an order of its own
    ):
        "Begin an epoch."
        self.epoch = epoch

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed*1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=g).numpy() if self.shuffle else np.arange(len(self))
        if self.group == 'modality' and self.shuffle:
            (some, a), (others, b) = (self._chunks(order[self.has_image[order] == m]) for m in (True, False))
            chunks = np.concatenate([some, others])
            chunks = chunks[torch.randperm(len(chunks), generator=g).numpy()]
            order = np.concatenate([chunks.reshape(-1), a, b])
        for i in range(0, len(order), 4096): yield from order[i:i+4096].tolist() # a list of all takes gigabytes

    def _chunks(self, order):
        "Chunks of similar length, and the samples that are left."
        pool = np.arange(len(order))//(50*self.chunk)
        order = order[np.lexsort((-self.lengths[order], pool))] # stable: equals stay as they were drawn
        cut = len(order) - len(order) % self.chunk
        return order[:cut].reshape(-1, self.chunk), order[cut:]

def blind_picture(
    batch:dict, # of text only
    side:int, # of the pictures that the tower takes
    use_levels:bool=False, # do batches with pictures carry `alignment`?
)->dict[str,Tensor]: # to add to the batch
    "A dummy image that goes through the modules and that no row points at."
    device = batch['input_ids'].device
    n = int(batch['sample_ids'].max()) + 1 if 'sample_ids' in batch else len(batch['input_ids'])
    out = dict(pixel_values=torch.zeros(1, 3, side, side, device=device),
               image_index=torch.zeros(0, dtype=torch.long, device=device))
    return out | (dict(alignment=torch.zeros(n, dtype=torch.long, device=device)) if use_levels else {})

def gate_stats(
    weights:Tensor|None, # over the levels, [n_samples, N], as the model returns them
)->dict[str,float]: # `gate_entropy`, and `alpha_0` to `alpha_{N-2}`; empty where the gate decided about no sample
    "What the gate gave, for a line of the log; samples with a level of their own do not count."
    alpha = weights[weights.sum(-1) > 1.5, :-1].float() if weights is not None else torch.zeros(0, 1)
    if not len(alpha): return {}
    entropy = -torch.special.xlogy(alpha, alpha).sum(-1).mean()
    return {'gate_entropy':round(entropy.item(), 4),
            **{f'alpha_{k}':round(a, 4) for k,a in enumerate(alpha.mean(0).tolist())}}

class AlignGPTTrainer(Trainer):
    "transformers' Trainer with the grouped sampler, learning rates by part, and batches that keep in step."
    def __init__(self, *args,
        stage:StageConfig, # what is trained and how
        watch:Any=None, # a `Watch`, which sees the batches
        **kwargs, # to `Trainer`
    ):
        with _adapters_shown(kwargs.get('model')): super().__init__(*args, **kwargs)
        self.stage, self.base, self.last_loss, self.last_weights = stage, '', torch.zeros(()), None
        self.place, self.sampler, self.watch = None, None, watch # of a stream; of other data; of both
        if watch is not None: self.add_callback(watch)
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True
        self.add_callback(_Epochs(self))

    def log(self, logs, start_time=None):
        "Tell the callbacks; what the state keeps, which goes into checkpoints, is without times."
        super().log(logs | (gate_stats(self.last_weights) if 'loss' in logs else {}), start_time)
        kept = self.state.log_history[-1]
        for k in [k for k in kept if k.endswith(('_runtime', '_per_second'))]: del kept[k]

    def get_train_dataloader(self):
        "Batches; those of a stream are dealt already."
        if not isinstance(self.train_dataset, SampleStream): return super().get_train_dataloader()
        how = dict(num_workers=self.args.dataloader_num_workers, pin_memory=self.args.dataloader_pin_memory)
        return torch.utils.data.DataLoader(self.train_dataset, self.stage.batch_size, collate_fn=self.data_collator,
                                           **how)

    def _get_train_sampler(self, train_dataset=None):
        d, s = train_dataset if train_dataset is not None else self.train_dataset, self.stage
        lengths, has_image = (getattr(d, k, None) for k in ('lengths', 'has_image'))
        chunk = s.batch_size*s.accumulate*self.args.world_size
        lengths, has_image = (np.ones(len(d), int) if v is None else v for v in (lengths, has_image))
        self.sampler = GroupedSampler(lengths, has_image, chunk, s.group, s.seed, s.shuffle)
        return self.sampler

    def create_optimizer(self,
        model:torch.nn.Module|None=None, # whose parameters; the trainer's own by default
    )->torch.optim.Optimizer:
        "AdamW over the groups of `param_groups`."
        if self.optimizer is None:
            groups = param_groups(self.model if model is None else model, self.stage)
            fused = self.args.device.type in ('cpu', 'cuda') and not self._is_offloaded()
            self.optimizer = torch.optim.AdamW(groups, lr=self.stage.learning_rate, fused=fused)
            if not self.is_deepspeed_enabled: self.optimizer.register_step_pre_hook(_fill_gradients)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        "The loss of a batch, in step with other processes."
        self.place = inputs.pop('place', None)
        inputs = self.in_step(inputs)
        loss, out = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.watch is not None and model.training: self.watch.see(model, inputs, out, num_items_in_batch)
        self.last_loss, weights = loss.detach(), getattr(out, 'weights', None)
        self.last_weights = weights if weights is None else weights.detach()
        return (loss, out) if return_outputs else loss

    def in_step(self,
        inputs:dict, # a batch
    )->dict: # the batch that this process computes
        "Add what keeps a batch in step with those of other processes."
        alone = not (dist.is_available() and dist.is_initialized()) # torchrun's last node is not
        if not self.stage.train or alone and 'language_model' in self.stage.train: return inputs
        if not {'pixel_values', 'vision_features'} & inputs.keys():
            inputs = inputs | blind_picture(inputs, self.model.config.vision_config.image_size, self.stage.use_levels)
        return inputs | ({'loss_slices':self._slices(inputs['labels'])} if self.is_deepspeed_enabled else {})

    def _slices(self, labels, max_logits=2**25):
        "How many slices the loss needs in the process with the most supervised tokens."
        logits = int((labels != -100).sum())*self.model.config.text_config.vocab_size
        n = torch.tensor(-(-logits//max_logits), device=labels.device)
        dist.all_reduce(n, dist.ReduceOp.MAX)
        return max(1, int(n))

    def _is_offloaded(self):
        "Does DeepSpeed keep the optimizer on the CPU?"
        return self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.hf_ds_config.is_offload()

class _Epochs(TrainerCallback):
    "Tell sampler and data which epoch begins."
    def __init__(self, trainer): self.trainer = trainer
    def on_epoch_begin(self, args, state, control, **kwargs):
        for o in (self.trainer.train_dataset, self.trainer.sampler):
            if hasattr(o, 'set_epoch'): o.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args, state, control, **kwargs):
        "Of a stream: the share of the run, from whatever step it went on."
        if self.trainer.place is not None: state.epoch = state.global_step/state.max_steps

def _adapted(model):
    "Has the model, which may be any, a language model with adapters?"
    return hasattr(model, 'language_model') and has_adapter(model)

@contextlib.contextmanager
def _adapters_shown(model):
    "`Trainer` wants to see the adapters of a quantised language model in the model around it."
    shown = _adapted(model)
    if shown: model._hf_peft_config_loaded = True
    try: yield
    finally:
        if shown: del model._hf_peft_config_loaded

def _fill_gradients(optimizer, *_):
    "A trained parameter that a step did not touch has the gradient zero, as it has among several processes."
    for p in (p for g in optimizer.param_groups for p in g['params'] if p.grad is None): p.grad = torch.zeros_like(p)

@patch
def _save_checkpoint(self:AlignGPTTrainer, model, trial):
    folder = Path(self.args.output_dir)
    _check_finite(self)
    with saving(folder, checkpoint := folder/f'checkpoint-{self.state.global_step}'):
        Trainer._save_checkpoint(self, model, trial)
        note_place(checkpoint, self.place, self.args.process_index, self.args.world_size)

def _check_finite(trainer):
    "All processes stop if a number of any is not finite."
    trained = [p.detach() for p in trainer.model.parameters() if p.requires_grad and p.numel()]
    mine = [n.to_local() if hasattr(n, 'to_local') else n for n in (trainer.last_loss, *trained)] # FSDP has pieces
    bad = torch.tensor(int(not all(bool(torch.isfinite(n).all()) for n in mine)), device=trainer.args.device)
    if dist.is_available() and dist.is_initialized(): dist.all_reduce(bad, dist.ReduceOp.MAX)
    if not int(bad): return
    raise AlignGPTError(f'{trainer.args.output_dir}: loss or weights are not finite at step '
                        f'{trainer.state.global_step}; no checkpoint is written',
                        'the last checkpoint is intact: lower the learning rate, or use bf16 or fp32 instead of '
                        'fp16, and run the command again')

@patch
def save_model(self:AlignGPTTrainer,
    output_dir:str|Path|None=None, # where to
    _internal_call:bool=False, # for a checkpoint
)->None:
    "The whole model; inside a checkpoint, what is trained."
    if _internal_call: return _save_trained(self, Path(output_dir))
    if _adapted(self.model): return _save_adapters(self, output_dir)
    if self.is_fsdp_enabled: self.accelerator.state.fsdp_plugin.set_state_dict_type('FULL_STATE_DICT')
    Trainer.save_model(self, output_dir)
    if self.args.should_save: (Path(output_dir)/'training_args.bin').unlink(missing_ok=True)

@patch
def _issue_warnings_after_load(self:AlignGPTTrainer, load_result):
    "Frozen parameters are not in a checkpoint; trained ones must be."
    trained = {n for n,p in self.model.named_parameters() if p.requires_grad}
    if bad := sorted(trained & set(load_result.missing_keys)) or sorted(load_result.unexpected_keys):
        raise AlignGPTError(f'{self.args.output_dir}: the checkpoint does not fit the model, first {bad[0]}',
                            'this run began with another model: name another folder')

def _save_trained(trainer, folder):
    "Configuration and trained parameters; DeepSpeed and FSDP write these themselves."
    if not trainer.args.should_save: return
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled: return trainer.model.config.save_pretrained(folder)
    trained = {n:p.detach().contiguous() for n,p in trainer.model.named_parameters() if p.requires_grad}
    save_file(trained, folder/SAFE_WEIGHTS_NAME, metadata=dict(format='pt'))

def _save_adapters(trainer, folder):
    "Adapters, projector, levels and gate, without the base; ZeRO-3 has them in pieces."
    if trainer.is_fsdp_enabled:
        raise AlignGPTError('FSDP holds adapters in pieces that are not gathered',
                            'use sharding zero2 or zero3 with adapters')
    whole = contextlib.nullcontext()
    if trainer.is_deepspeed_enabled:
        import deepspeed
        whole = deepspeed.zero.GatheredParameters([p for n,p in trainer.model.named_parameters() if p.requires_grad
                                                   or 'language_model.' not in n and 'lm_head.' not in n])
    with whole:
        if trainer.args.should_save: save_adapter(trainer.model, folder, trainer.base, trainer.processing_class)

@patch
def evaluate(self:AlignGPTTrainer,
    eval_dataset:torch.utils.data.Dataset|None=None, # samples; those of the trainer by default
    ignore_keys:list[str]|None=None, # for `Trainer`
    metric_key_prefix:str='eval', # before the names of the numbers
)->dict[str,float]: # e.g. {'eval_loss': 1.25}
    "Loss per supervised token of the validation samples."
    was_training = self.model.training
    self.model_wrapped.eval()
    total = _loss_and_tokens(self, self.get_eval_dataloader(eval_dataset))
    self.model_wrapped.train(was_training)
    metrics = {f'{metric_key_prefix}_loss':(total[0]/total[1].clamp(min=1)).item()}
    self.log(metrics)
    self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
    return metrics

def _loss_and_tokens(trainer, loader):
    "Summed loss and number of supervised tokens, over all processes."
    total = torch.zeros(2, device=trainer.args.device, dtype=torch.float64)
    for batch in loader:
        batch = _without_repeats(trainer, trainer.in_step(send_to_device(batch, trainer.args.device)), loader)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = trainer.model_wrapped(**batch, return_logits=False, num_items_in_batch=1).loss
        total += torch.stack([loss, (batch['labels'][:, 1:] != -100).sum()]).double()
    if dist.is_available() and dist.is_initialized(): dist.all_reduce(total)
    return total

def _without_repeats(trainer, batch, loader):
    "Take the labels from the repetitions that fill up the last batch."
    labels, args = batch['labels'], trainer.args
    whole = len(loader.dataset) % (args.eval_batch_size*args.world_size)
    if not getattr(loader, 'end_of_dataloader', False) or not whole or args.world_size == 1: return batch
    mine = max(0, min(len(labels), whole - args.process_index*args.eval_batch_size))
    repeated = torch.arange(len(labels), device=labels.device)[:,None] >= mine
    return {**batch, 'labels':labels.masked_fill(repeated, -100)}

SHARDINGS = 'none', 'zero2', 'zero3', 'zero3-offload', 'fsdp'

def deepspeed_config(
    kind:str, # 'zero2', 'zero3' or 'zero3-offload'
    cpu:bool=False, # the processes run on CPUs
)->dict: # for DeepSpeed
    "The DeepSpeed configuration behind a name."
    zero = dict(stage=int(kind[4]), overlap_comm=not cpu, contiguous_gradients=True, reduce_bucket_size='auto')
    if zero['stage'] == 3:
        zero.update(stage3_prefetch_bucket_size='auto', stage3_param_persistence_threshold='auto',
                    stage3_gather_16bit_weights_on_model_save=True)
    if kind.endswith('offload'):
        zero.update({f'offload_{o}':dict(device='cpu', pin_memory=not cpu) for o in ('optimizer', 'param')})
    auto = ('train_batch_size', 'train_micro_batch_size_per_gpu', 'gradient_accumulation_steps', 'gradient_clipping')
    return dict(zero_optimization=zero, bf16=dict(enabled='auto'), fp16=dict(enabled='auto'),
                zero_allow_untested_optimizer=True, zero_force_ds_cpu_optimizer=not cpu,
                **dict.fromkeys(auto, 'auto'))

def _sharding(stage, cpu):
    "Arguments for `TrainingArguments`. A single process has nobody to share with, unless it is with the CPU."
    kind, several = stage.sharding, process_rank()[1] > 1
    if kind not in SHARDINGS and not Path(kind).is_file():
        raise AlignGPTError(f"sharding: got {kind!r}. Valid: {', '.join(SHARDINGS)}, or a DeepSpeed JSON file")
    if kind == 'none' or not (several or kind.endswith('offload')): return {}
    if kind == 'fsdp':
        return dict(fsdp=True, fsdp_config=dict(version=2, state_dict_type='SHARDED_STATE_DICT',
                                                activation_checkpointing=stage.checkpointing))
    if not is_deepspeed_available():
        raise AlignGPTError(f'sharding {kind!r} needs DeepSpeed, which is not installed',
                            "pip install 'aligngpt[deepspeed]', or use sharding 'fsdp', or 'none' if a GPU holds "
                            "everything")
    return dict(deepspeed=kind if Path(kind).is_file() else deepspeed_config(kind, cpu))

def _precision(stage, cpu):
    "The type of the computation."
    if stage.precision == 'fp16' and cpu:
        raise AlignGPTError('precision fp16 needs a GPU', "use 'bf16' or 'fp32' on a CPU")
    able = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return dict(bf16=stage.precision == 'bf16' or stage.precision == 'auto' and able, fp16=stage.precision == 'fp16',
                tf32=None if cpu else True)

_CHECKPOINTING = next(k for k in ('activation_checkpointing', 'gradient_checkpointing')
                      if k in {f.name for f in dataclasses.fields(TrainingArguments)})
_ALWAYS = dict(
    optim='adamw_torch', remove_unused_columns=False, label_names=['labels'], use_cache=True, disable_tqdm=True,
    average_tokens_across_devices=True, include_num_input_tokens_seen='non_padding', logging_nan_inf_filter=False,
    prediction_loss_only=True, ddp_find_unused_parameters=False, save_total_limit=None) # for every stage

def training_arguments(
    stage:StageConfig, # what to translate
    folder:str|Path, # of the stage
    device:str='auto', # 'cpu' forces the CPU
    evaluate:bool=False, # there is validation data
)->TrainingArguments:
    "Translate a stage into transformers' `TrainingArguments`; under a launcher this starts the process group."
    s, cpu = stage, pick_device(device)[0] == 'cpu'
    sharding, precision = _sharding(s, cpu), _precision(s, cpu)
    tell_torch()
    return TrainingArguments(
        output_dir=str(folder), num_train_epochs=s.epochs, max_steps=s.max_steps,
        learning_rate=s.learning_rate, lr_scheduler_type=s.schedule, warmup_steps=s.warmup,
        weight_decay=s.weight_decay, max_grad_norm=s.max_grad_norm, seed=s.seed, data_seed=s.seed,
        per_device_train_batch_size=s.batch_size, per_device_eval_batch_size=s.batch_size,
        gradient_accumulation_steps=s.accumulate,
        save_strategy='steps' if s.save_every else 'no', save_steps=s.save_every or 500,
        eval_strategy='steps' if evaluate and s.eval_every else 'no', eval_steps=s.eval_every or None,
        logging_steps=s.log_every, report_to=list(s.trackers) or 'none',
        use_cpu=cpu, dataloader_num_workers=s.workers, dataloader_pin_memory=not cpu,
        **{_CHECKPOINTING:s.checkpointing and 'fsdp' not in sharding}, **precision, **sharding, **_ALWAYS)