import contextlib, time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from aligngpt.core.files import read_json, write_json
from aligngpt.core.markup import echo
from aligngpt.checkpoints.adapters import has_adapter
from aligngpt.model.layers import GATE
from aligngpt.model.modeling import PARTS, part_parameters
from aligngpt.training import bands
from aligngpt.training.settings import StageConfig
from aligngpt.training.signs import Facts, ask_probes, from_dict, pixel_facts, rows_of, unexplained

class Purse:
    "Seconds spent on looks, and whether another one may be."
    def __init__(self,
        share:float=.006, # of the run's time
        ahead:int=100, # steps that a young run may count on
    ):
        self.share, self.ahead, self.spent, self.price = share, ahead, 0., {}
        self.began, self.steps = time.perf_counter(), 0

    def may(self,
        what:str, # a kind of look
    )->bool:
        "Is there enough for it?"
        if not self.steps: return self.spent == 0 or what not in self.price
        step = (time.perf_counter() - self.began)/self.steps
        return self.spent + self.price.get(what, 0) <= self.share*step*max(self.steps, self.ahead)

    @contextlib.contextmanager
    def pay(self,
        what:str, # a kind of look
    ):
        "Pay for what happens inside."
        start = time.perf_counter()
        try: yield
        finally:
            cost = time.perf_counter() - start
            self.spent += cost
            self.price[what] = max(cost, self.price.get(what, 0)/2)

    @property
    def part(self)->float: # of the time so far
        "What was spent."
        return self.spent/max(1e-9, time.perf_counter() - self.began)

class Samples:
    "A few numbers of each part of a model."
    def __init__(self,
        model:torch.nn.Module, # an AlignGPT
        train:tuple[str,...], # parts that should learn
        each:int=2, # matrices of a part
        numbers:int=64, # of a matrix
    ):
        self.train, self.numbers, self.params = train, numbers, {}
        for part in PARTS:
            found = [p for p in part_parameters(model, part).values() if p.is_floating_point() and p.numel()]
            if part in train: found = [p for p in found if p.requires_grad] or found
            if found: self.params[part] = found[::max(1, len(found)//each)][:each]
        self.first, self.before = self._copy(), {}

    def _copy(self): return {k:[self._some(p) for p in ps] for k,ps in self.params.items()}
    def _some(self, p):
        flat = p.detach().flatten()
        return flat[::max(1, len(flat)//self.numbers)][:self.numbers].clone()

    def note(self)->None:
        "Remember numbers and gradients before a step of the optimizer."
        learn = {k:ps for k,ps in self.params.items() if k in self.train}
        self.before = {k:[(self._some(p), None if p.grad is None else self._some(p.grad)) for p in ps]
                       for k,ps in learn.items()}

    def compare(self,
        step:int, # now
    )->dict[str,dict]: # part -> learns, moved, stuck, grad, dtype, step
        "What the parts did since the beginning, and in this step."
        return {k:dict(learns=k in self.train, step=step, dtype=str(ps[0].dtype)[6:],
                       moved=any(bool((self._some(p) != f).any()) for p,f in zip(ps, self.first[k])),
                       **self._stuck(k, ps)) for k,ps in self.params.items()}

    def _stuck(self, part, params):
        "The share of numbers that had a gradient and stayed, and the largest gradient."
        noted = zip(params, self.before.get(part, []))
        pairs = [(self._some(p) == old, g != 0, g) for p,(old, g) in noted if g is not None]
        if not pairs: return {}
        stayed, had = (torch.cat([x[k] for x in pairs]) for k in (0, 1))
        return dict(stuck=float((stayed & had).sum()/had.sum().clamp(min=1)),
                    grad=max(float(g.abs().max()) for *_,g in pairs))

LOOKS = 3, 10, 30, 60, 100, 300, 1000, 3000, 10_000 # steps after which parts are compared and the probes asked
GAINS = 60, 80, 100, 200, 500, 1000, 2000, 5000 # steps at which pictures change places

class Watch(TrainerCallback):
    "Looks at a run while it trains."
    def __init__(self,
        folder:str|Path, # of the stage
        stage:StageConfig, # what is trained and how
        processor:Any=None, # of the model; None: texts are not looked at
        samples:int=0, # of the data
        quiet:bool=False, # say nothing on the screen
    ):
        self.folder, self.quiet, self.purse, self.findings, self.said = Path(folder), quiet, Purse(), [], set()
        self.facts = Facts(stage, processor, samples=samples)
        self.batches, self.parts, self.step, self.alone, self.due = 0, None, 0, True, list(GAINS)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        "Keep some numbers of each part, and what was found before an interruption."
        self.purse, self.step = Purse(), state.global_step
        with self.purse.pay('begin'):
            self.facts.config, self.facts.lora, self.facts.planned = model.config, has_adapter(model), state.max_steps
            self.alone = args.world_size == 1 and not args.deepspeed and not args.fsdp
            self.parts = Samples(model, self.facts.stage.train) if self.alone else None
            self.due = [s for s in GAINS if s > self.step]
            self.first = self.step + 1
            old = read_json(self.path).get('findings', []) if self.step and self.path.exists() else []
            self.findings = [f for f in map(from_dict, old) if f]
            self.said = {f.name for f in self.findings}

    @property
    def path(self)->Path: # in the run's folder
        "Where findings are written."
        return self.folder/'watch.json'

    def see(self,
        model:torch.nn.Module, # that is trained
        inputs:dict, # a batch, on its device
        out:Any, # of the model
        items:Any=None, # what the loss is divided by
    )->None:
        "Look at a batch of a step and at what the model made of it."
        self.batches += 1
        if self.batches <= 2: self._read(inputs)
        if self.batches <= 24 and self.purse.may('about'): self._note(inputs)
        if self.step + 1 in LOOKS: self._spread(out)
        if self.alone and self.due and self.step + 1 >= self.due[0]: self._exchange(model, inputs, out, items)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        "Look at the rate, at the optimizer's state after an interruption, and at gradients."
        if self.step < 3: self.facts.rates.append((self.step + 1, _rate_share(optimizer)))
        if self.step and self.step + 1 == self.first and self.alone:
            self.facts.resumed = self.step, _optimizer_steps(optimizer)
        if self.parts and self.step + 1 in LOOKS:
            with self.purse.pay('note'): self.parts.note()

    def on_step_end(self, args, state, control, **kwargs):
        "Compare parts and ask the probes, at some steps."
        self.step = self.facts.steps = state.global_step
        self.purse.steps += 1
        if self.step in LOOKS and self.parts:
            with self.purse.pay('compare'): self.facts.parts = self.parts.compare(self.step)
        if self.step in LOOKS or self.step == self.first: self.ask(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        "Keep the line."
        if logs and {'loss', 'eval_loss'} & logs.keys(): self.facts.log.append(dict(step=state.global_step, **logs))

    def on_train_end(self, args, state, control, **kwargs):
        "Ask once more, and write."
        self.ask(state, last=True)

    def ask(self,
        state:Any, # of the trainer
        last:bool=False, # write, whatever was found
    )->None:
        "Ask the probes of a run."
        if not last and not self.purse.may('ask'): return
        with self.purse.pay('ask'):
            new = self._keep(ask_probes('run', self.facts))
            if state.is_world_process_zero and (new or last): self._write()

    def _read(self, inputs):
        "Read rows and pixels of one of the first batches."
        if self.batches > 1 and not self.purse.may('read'): return
        with self.purse.pay('read'):
            self.facts.rows += rows_of(inputs, 8 if self.batches == 1 else 4)
            if (p := inputs.get('pixel_values')) is not None and len(p) > 1: self.facts.pixels = pixel_facts(p)
            if self._keep(ask_probes('batch', self.facts)): self._write()

    def _note(self, inputs):
        "What the samples are about: the first words of their answers, and their levels."
        with self.purse.pay('about'):
            labels = inputs['labels'][:4].cpu().numpy()
            about = [t for row in labels for t in row[row != -100][:6].tolist()]
            if (a := inputs.get('alignment')) is not None and not a.is_floating_point():
                levels = [v for v in a.tolist() if v != GATE]
                self.facts.levels.update(levels)
                about += [-1 - v for v in levels[:4]]
            self.facts.about.append(about)

    def _spread(self, out):
        "How much image tokens differ between pictures, as a share of their size."
        image = getattr(out, 'image_hidden_states', None)
        if image is None or len(image) < 4: return
        with self.purse.pay('spread'):
            x = image.detach()[:8].float()
            self.facts.spread.append((self.step + 1, float(x.std(0).mean()/x.abs().mean().clamp(min=1e-12))))

    def _exchange(self, model, inputs, out, items):
        "The loss with each picture at its neighbour's place."
        name = next((k for k in ('pixel_values', 'vision_features') if inputs.get(k) is not None), None)
        if name is None or len(inputs[name]) < 4 or 'sample_ids' in inputs or not self.purse.may('gain'): return
        with self.purse.pay('gain'):
            self.due.pop(0)
            right = _loss(model, inputs, items) if self.facts.lora else float(out.loss.detach())
            other = _loss(model, inputs | {name:inputs[name].roll(1, 0)}, items)
            self.facts.gains.append((self.step + 1, other/max(right, 1e-6) - 1))

    def _keep(self, found):
        "Keep what is new, and say it."
        new = [f for f in found if f.name not in self.said]
        self.findings = unexplained([*self.findings, *new])
        self.said |= {f.name for f in new}
        if not self.quiet:
            for f in new: echo(f'watch: {f}', err=True)
        return new

    def _write(self):
        "Findings, and the facts that the doctor asks for later."
        f = self.facts
        write_json(dict(step=self.step, share=round(self.purse.part, 5), findings=[x.to_dict() for x in self.findings],
                        parts=f.parts, spread=f.spread, gains=f.gains, rates=f.rates, resumed=f.resumed,
                        levels={str(k):n for k,n in f.levels.items()}, entropy=bands.unigram_entropy(f.rows) if f.rows
                        else None), self.path)

def _rate_share(optimizer):
    "The rate as a share of its peak."
    g = optimizer.param_groups[0]
    return float(g['lr'])/max(1e-12, float(g.get('initial_lr', g['lr'])))

def _optimizer_steps(optimizer):
    "How many steps the optimizer's state knows of."
    return max((int(s['step']) for s in optimizer.state.values() if 'step' in s), default=0)

@torch.no_grad()
def _loss(model, inputs, items):
    "The loss of a batch, without chance and without a trace."
    was = model.training
    model.eval()
    try: return float(model(**inputs, num_items_in_batch=items, return_logits=False).loss)
    finally: model.train(was)