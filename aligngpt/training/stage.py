import contextlib, dataclasses, json, math, shutil, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from aligngpt.core.errors import AlignGPTError, os_errors
from aligngpt.core.files import atomic_path, fingerprint, own_folder, read_json, seal_folder, write_json
from aligngpt.core.markup import json_line
from aligngpt.core.shards import process_rank
from aligngpt.core.steps import environment, note_time, noted
from aligngpt.training.freezing import FreezeTable, add_gate, freeze, param_groups
from aligngpt.training.runs import (MARKER, Interrupted, RunCallback, cut_lines, last_checkpoint, resume,
                                    sound_checkpoint)
from aligngpt.training.settings import FINETUNE, PRETRAIN, StageConfig, override, spread
from aligngpt.training.stream import SampleStream, take_turns
from aligngpt.training.trainer import AlignGPTTrainer, GroupedSampler, training_arguments
from aligngpt.training.watch import Watch

_all_ = ['FINETUNE', 'PRETRAIN', 'FreezeTable', 'StageConfig', 'add_gate', 'freeze', 'override', 'param_groups',
         'AlignGPTTrainer', 'GroupedSampler', 'training_arguments', 'Interrupted', 'RunCallback',
         'last_checkpoint'] # of the chapters before, to be found here too

FREE = ('batch_size', 'accumulate', 'global_batch', 'checkpointing', 'sharding', 'save_every', 'keep', 'log_every',
        'eval_every',
        'show', 'watch', 'workers', 'trackers') # may change on the way

def _record(stage, args, model, data, extra):
    "What `stage.json` says."
    deepspeed = args.deepspeed or getattr(args, 'deepspeed_plugin', None)
    record = dict(stage={k:v for k,v in dataclasses.asdict(stage).items() if k != 'said'},
                  global_batch=stage.batch_size*stage.accumulate*args.world_size, processes=args.world_size,
                  engine='deepspeed' if deepspeed else 'fsdp' if args.fsdp else 'plain',
                  data=getattr(data, 'fingerprint', None),
                  samples=None if isinstance(data, SampleStream) else len(data), trained=freeze(model, stage.train),
                  environment=environment(), **extra)
    return json.loads(json.dumps(record, default=str))

def _check_same(folder, new):
    "A run continues only with the settings, the data and the models that it began with, wherever they lie now."
    finished = (folder/'done.json').exists()
    if not (folder/'stage.json').exists() or not (finished or last_checkpoint(folder)): return
    old = read_json(folder/'stage.json')
    began = 'holds a finished run' if finished else 'this run began'
    def need(what, before, now, hint):
        if before == now: return
        raise AlignGPTError(f'{folder}: {began} with other settings: {what} was {before}, and is {now}', hint)
    for k in new['stage']:
        if k not in FREE: need(k, old['stage'].get(k), new['stage'][k], _longer(folder, k, finished))
    need('global batch', old['global_batch'], new['global_batch'],
         f"say global_batch={old['global_batch']} (--global-batch), and any number of processes goes on")
    for k in ('data', 'samples', 'trained'): need(k, old[k], new[k], _OTHER if k == 'data' else 'name another folder')
    for k,(was,is_) in _begins(old, new).items(): need(f'{k} (by its weights)', was, is_, 'begin with the same one')
    if not finished: need('sharding', old['engine'], new['engine'], 'go on as it began')

_OTHER = 'the same data may lie elsewhere and have another name; other data needs another folder'

def _longer(folder, setting, finished):
    "What to do about another setting."
    if setting not in ('epochs', 'max_steps'): return 'name another folder, or use the old setting'
    first = '' if finished else 'finish it with the old setting; then '
    return f'{first}to train for longer, begin a new run from this one: --model {folder} --out ANOTHER_FOLDER'

def _begins(old, new):
    "The identities of what both began with: name -> (before, now)."
    def known(record): return {k:v['weights'] for k,v in record.get('begins', {}).items() if v.get('weights')}
    before, now = known(old), known(new)
    return {k:(before[k], now[k]) for k in before.keys() & now.keys()}


@contextlib.contextmanager
def _hold(folder, args):
    "The run folder, locked by the first process for all."
    with own_folder(folder) if args.process_index == 0 else contextlib.nullcontext():
        if args.process_index == 0 and not (folder/'done.json').exists(): sound_checkpoint(folder)
        if args.world_size > 1: torch.distributed.barrier()
        yield

def _begin(folder, now, args):
    "Note what the run is, unless it is another one, and see that all processes see the same."
    problem = None
    try:
        _check_same(folder, now)
        if args.process_index == 0 and not (folder/'done.json').exists():
            write_json(now, folder/'stage.json', sealed=True)
    except AlignGPTError as e: problem = e
    for e in filter(None, gather_object([problem])): raise e
    if args.world_size > 1: _same_folder(folder)

def _seen(folder):
    "What tells two run folders apart."
    start, stage = last_checkpoint(folder), folder/'stage.json'
    return {'the last checkpoint':start.name if start else 'none', 'done.json':(folder/'done.json').exists(),
            'the sum of stage.json':fingerprint(stage) if stage.exists() else 'none'}

def _same_folder(folder, patience=30.):
    "All processes must see what the first one sees; a disk of the network may take some seconds to show it."
    first, end = gather_object([_seen(folder)])[0], time.monotonic() + patience
    while _seen(folder) != first and time.monotonic() < end: time.sleep(.2)
    for rank, seen in enumerate(gather_object([_seen(folder)])):
        if bad := next((k for k in first if seen[k] != first[k]), None):
            raise AlignGPTError(f'{folder}: not the same folder for all processes: {bad} is {first[bad]} '
                                f'for process 0, {seen[bad]} for process {rank}',
                                'name a folder on a disk that all nodes see')

def _recut(checkpoint, args):
    "Let a DeepSpeed run go on with another number of processes."
    if not checkpoint or not args.deepspeed or read_json(checkpoint/MARKER)['processes'] == args.world_size: return
    args.hf_deepspeed_config.config['checkpoint'] = dict(load_universal=True)
    if args.process_index == 0: _make_universal(checkpoint/(checkpoint/'latest').read_text(), args.world_size)
    torch.distributed.barrier()

def _make_universal(source, processes):
    "Have DeepSpeed's own program write a checkpoint once more, in its universal form."
    out = source.with_name(source.name + '_universal')
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run([sys.executable, '-m', 'deepspeed.checkpoint.ds_to_universal', '--input_folder', source,
                           '--output_folder', out, '--inject_missing_state'], capture_output=True, text=True)
    if done.returncode:
        raise AlignGPTError(f'{source}: could not be converted for {processes} processes: '
                            f'{done.stderr.strip().splitlines()[-1:]}', 'go on with as many processes as before')

@dataclass
class StageData:
    "What a stage learns from."
    train:Any # torch dataset of encoded samples; may have `lengths`, `has_image`, `fingerprint` and `set_epoch`
    collate:Any # list of samples -> batch
    valid:Any=None # validation samples

def run_stage(
    model:torch.nn.Module, # an AlignGPT model
    data:StageData, # what it learns from
    stage:StageConfig, # what is trained and how
    folder:str|Path, # where the results go; a second call continues there
    processor:Any=None, # saved with the model
    device:str='auto', # 'cpu' forces the CPU
    quiet:bool=False, # no progress bar
    callbacks:tuple=(), # more callbacks of transformers
    record:dict|None=None, # more to write into `stage.json`
)->dict: # losses of the steps and of the evaluations, seconds
    "Run one stage, continuing after the last complete checkpoint if there is one."
    folder, stage = Path(folder), spread(stage, process_rank()[1])
    args = training_arguments(stage, folder, device, data.valid is not None)
    with _hold(folder, args):
        now = _record(stage, args, model, data.train, record or {})
        _begin(folder, now, args)
        if (folder/'done.json').exists(): return _done(folder)
        start = last_checkpoint(folder)
        if args.process_index == 0:
            write_json(now, folder/'stage.json', sealed=True)
            note_time(folder, event='start', after=start and start.name)
        _recut(start, args)
        if isinstance(data.train, SampleStream): take_turns(data.train, start, stage, *process_rank())
        set_seed(stage.seed)
        types = _widen(model, args)
        call = RunCallback(folder, '' if quiet else stage.name, stage.keep)
        trainer = _trainer(model, data, stage, args, processor, (call, *callbacks))
        trainer.base = now.get('base', '')
        try: seconds = _train(trainer, call, start)
        finally: call.close()
        _remember(trainer, now)
        return _finish(trainer, folder, types, seconds)

def _trainer(model, data, stage, args, processor, callbacks):
    "The trainer of a stage, which reports through our callbacks alone."
    call, *others = callbacks
    shown = [AnswersCallback(call.folder, data, stage, processor)] if data.valid is not None and stage.show else []
    trainer = AlignGPTTrainer(model=model, args=args, train_dataset=data.train, eval_dataset=data.valid,
                              data_collator=data.collate, processing_class=processor, stage=stage,
                              callbacks=[call, *shown, *others], watch=_watch(call, data, stage, processor))
    for c in (PrinterCallback, ProgressCallback): trainer.remove_callback(c)
    return trainer

def _watch(call, data, stage, processor):
    "What looks whether the run is healthy, if the stage wants it."
    n = 0 if isinstance(data.train, SampleStream) else len(data.train)
    return Watch(call.folder, stage, processor, n, quiet=not call.desc) if stage.watch else None

def _train(trainer, call, start):
    "Train to the end or to a signal."
    result = resume(trainer, start)
    if call.stop and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(f'{call.folder}: stopped by {call.stop} at step {trainer.state.global_step}',
                          'run the same command again to continue there', 128 + call.stop.number)
    return round(result.metrics['train_runtime'], 1)

def _remember(trainer, record):
    "Add the stage to the history of the model, for its card; what it learnt from by name, not by place."
    sources = record.get('sources', ())
    def said(k): return ', '.join(dict.fromkeys(s[k] for s in sources if s.get(k)))
    files = ', '.join(Path(s['path']).name for s in sources) + (f' ({said("name")})' if said('name') else '')
    step = dict(step=record['stage']['name'], name=files, samples=record['samples'], steps=trainer.state.global_step,
                license=said('license'), fingerprint=record['data'])
    config = trainer.model.config
    config.history = [*(config.history or []), {k:v for k,v in step.items() if v}]

def _finish(trainer, folder, types, seconds):
    "Save the model and the summary."
    first, history = trainer.args.process_index == 0, trainer.state.log_history
    if first:
        with atomic_path(folder/'model') as tmp, _types(trainer, types):
            trainer.save_model(str(tmp))
            seal_folder(tmp)
    else: trainer.save_model(str(folder/'model'))
    done = dict(steps=trainer.state.global_step, losses=[h['loss'] for h in history if 'loss' in h],
                eval_losses=[h['eval_loss'] for h in history if 'eval_loss' in h])
    if first:
        note_time(folder, event='end', seconds=seconds)
        write_json(done, folder/'done.json', sealed=True)
    trainer.accelerator.wait_for_everyone()
    return done | dict(seconds=seconds)

def _done(folder):
    "What a finished run came to; its seconds are those of the last start."
    seconds = [r['seconds'] for r in noted(folder) if 'seconds' in r]
    return dict(seconds=seconds[-1] if seconds else 0.) | read_json(folder/'done.json')

def _widen(model, args):
    "Hold in float32 what learns, and return the types that parameters had."
    types = {n:p.dtype for n,p in model.named_parameters()}
    if args.deepspeed: return {}
    for p in model.parameters():
        if p.is_floating_point() and (p.requires_grad or args.fsdp): p.data = p.data.float()
    return types

@contextlib.contextmanager
def _types(trainer, types):
    "For a while, give parameters the types that they came with."
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled: yield; return
    wide = {n:p.data for n,p in trainer.model.named_parameters() if p.dtype != types.get(n, p.dtype)}
    for n,p in trainer.model.named_parameters():
        if n in wide: p.data = p.data.to(types[n])
    try: yield
    finally:
        for n,p in trainer.model.named_parameters():
            if n in wide: p.data = wide[n]

class AnswersCallback(TrainerCallback):
    "At each evaluation, answer a few validation samples and write them to `answers.jsonl`."
    def __init__(self,
        folder:str|Path, # of the stage
        data:StageData, # whose `valid` samples are answered
        stage:StageConfig, # `show` says how many
        processor:Any=None, # to turn ids into text
        tokens:int=48, # of an answer, at most
    ):
        self.folder, self.data, self.stage = Path(folder), data, stage
        self.processor, self.tokens = processor, tokens

    def on_train_begin(self, args, state, control, **kwargs):
        "Answers of steps that come again go."
        if state.is_world_process_zero: cut_lines(self.folder/'answers.jsonl', state.global_step)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        "Answer, and write the answers."
        was_training, samples = model.training, self.data.valid
        model.eval()
        rows = [dict(step=state.global_step, **self.answer(model, samples[i]))
                for i in range(min(self.stage.show, len(samples)))]
        model.train(was_training)
        if state.is_world_process_zero:
            with os_errors(self.folder/'answers.jsonl'), open(self.folder/'answers.jsonl', 'a') as f:
                f.writelines(json_line(r) + '\n' for r in rows)

    @torch.no_grad()
    def answer(self,
        model:torch.nn.Module, # an AlignGPT model
        sample:dict, # encoded
    )->dict[str,str]: # prompt, answer, expected
        "The model's answer to the first turn of a sample."
        ids, labels, c = torch.as_tensor(sample['input_ids']), torch.as_tensor(sample['labels']), model.config
        said = labels != -100
        n = int(said.int().argmax()) # where the first answer begins, and below where it ends
        end = n + int(torch.cat([~said[n:], torch.tensor([True])]).int().argmax())
        batch = {k:v.to(model.device) for k,v in self.data.collate([first_turn(sample, n, c)]).items()
                 if k != 'labels'}
        if self.stage.use_levels: batch['alignment'] = c.num_levels - 1
        out = model.generate(**batch, max_new_tokens=self.tokens, do_sample=False)[0, n:]
        return dict(prompt=self.text(ids[:n], c), answer=self.text(out, c), expected=self.text(labels[n:end], c))

    def text(self,
        ids:torch.Tensor, # [n] token ids
        config:Any, # of the model, which names the placeholders
    )->str|list[int]: # without a processor, ids
        "Ids as text, without the placeholders."
        ids = [i for i in ids.tolist() if i not in (config.image_token_id, config.align_token_id)]
        return ids if self.processor is None else self.processor.tokenizer.decode(ids, skip_special_tokens=True)

def first_turn(sample, n, config):
    "A sample cut before position `n`, with the pictures that come before it."
    out = {k:torch.as_tensor(sample[k])[:n] for k in ('input_ids', 'labels', 'gate_mask') if k in sample}
    pictures = int((out['input_ids'] == config.image_token_id).sum())//config.num_image_tokens
    return out | {k:sample[k][:pictures] for k in ('pixel_values', 'images') if k in sample and pictures}

def plot_losses(
    runs:dict[str,list[float]], # name -> losses
    smooth:int=1, # losses to average over
    every:int|dict[str,int]=1, # steps between two losses, of all runs or by name
    bands:dict[str,Any]|None=None, # name -> what is expected, a `Band`
): # a matplotlib figure
    "Loss curves of one or more runs."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6, 3))
    for name,y in runs.items():
        y, apart = torch.tensor(y), every if isinstance(every, int) else every[name]
        if smooth > 1 and len(y) > smooth: y = y.unfold(0, smooth, 1).mean(-1)
        last = apart*len(runs[name]) # the step of the last loss, and so of the last mean
        line, = ax.plot(torch.arange(len(y))*apart + last - apart*(len(y) - 1), y, label=name)
        if (band := (bands or {}).get(name)): _shade(ax, band, last, line.get_color())
    ax.set(xlabel='step', ylabel='loss', yscale='log'); ax.legend(); ax.grid(alpha=.3)
    return fig

def _shade(ax, band, last, color):
    "A band behind a curve, to the end of the curve."
    steps = sorted({*(s for s in band.steps if s < last), last})
    low, high = zip(*(band.at(s) for s in steps))
    ax.fill_between(steps, [max(l, 1e-3) for l in low], high, alpha=.15, color=color, lw=0)

def plot_alpha(
    folder:str|Path, # of a stage, with log.jsonl
): # a matplotlib figure; None if no gate decided about anything
    "What the gate gave to each local level over the steps, and the entropy of its weights."
    import matplotlib.pyplot as plt
    rows = [r for r in map(json.loads, (Path(folder)/'log.jsonl').read_text().splitlines()) if 'gate_entropy' in r]
    if not rows: return None
    steps, n = [r['step'] for r in rows], sum(k.startswith('alpha_') for k in rows[0])
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.5), layout='constrained')
    shades = plt.get_cmap('viridis')(torch.linspace(0, 1, n))
    left.stackplot(steps, *([r[f'alpha_{k}'] for r in rows] for k in range(n)), colors=shades)
    left.set(xlabel='step', title=f'mean α: level 0 (below) to {n-1}', ylim=(0, 1), xlim=(steps[0], steps[-1]))
    right.plot(steps, [r['gate_entropy'] for r in rows])
    right.axhline(math.log(n), color='grey', lw=.8, ls=':')
    right.set(xlabel='step', title='entropy of α (dotted: equal weights)', ylim=(0, None))
    return fig