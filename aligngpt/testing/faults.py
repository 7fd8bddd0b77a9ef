import dataclasses, json, shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np, torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, set_seed

from aligngpt.core.files import read_json, write_json
from aligngpt.text.conversation import render
from aligngpt.model.toy import COLOURS
from aligngpt.data.batches import Collator, SampleDataset
from aligngpt.data.records import Records
from aligngpt.levels.alignment import levels_from_scores
from aligngpt.checkpoints.adapters import add_lora
from aligngpt.checkpoints.layouts import from_base, load
from aligngpt.training.freezing import add_gate
from aligngpt.training.settings import FINETUNE, PRETRAIN, override
from aligngpt.training.stage import StageData, run_stage
from aligngpt.quickstart.run import InMemory
from aligngpt.quickstart.scratch import train_tokenizer
from aligngpt.testing.fixtures import tiny_clip

GROUNDS = dict(white=(235, 235, 235), black=(20, 20, 20), grey=(128, 128, 128), brown=(120, 70, 30))
SYSTEM = 'Be brief.'

def picture(
    colour:str, # key in `COLOURS`
    ground:str, # key in `GROUNDS`
    rng:np.random.Generator, # chance
)->Image.Image: # 32 by 32 pixels
    "A coloured square on a ground, with noise."
    x = np.broadcast_to(GROUNDS[ground], (32, 32, 3)) + rng.integers(-20, 20, (32, 32, 3))
    x[8:24, 8:24] = np.array(COLOURS[colour]) + rng.integers(-20, 20, (16, 16, 3))
    return Image.fromarray(x.clip(0, 255).astype(np.uint8))

def caption(
    colour:str, # key in `COLOURS`
    ground:str, # key in `GROUNDS`
)->str:
    "What a caption says."
    return f'a {colour} square on {ground}'

def _another(all_, one, rng):
    "Any other."
    return rng.choice([x for x in all_ if x != one])

def pair_record(
    i:int, # number of the picture
    colour:str, # of its square
    ground:str, # behind it
    rng:np.random.Generator, # chance
)->dict: # LLaVA format, with `score`
    "A caption of some degree of truth."
    degree = int(rng.integers(0, 4))
    said = (colour if degree in (2, 3) else _another(COLOURS, colour, rng),
            ground if degree in (1, 3) else _another(GROUNDS, ground, rng))
    turns = [dict(zip(('from', 'value'), t)) for t in (('human', '<image>'), ('gpt', caption(*said)))]
    return dict(id=str(i), image=f'{i}.png', conversations=turns, score=(0, 1, 1, 2)[degree] + .3*rng.normal())

def talk_record(
    i:int, # number of the picture
    colour:str, # of its square
    ground:str, # behind it
    rng:np.random.Generator, # chance
)->dict: # LLaVA format
    "A question about a picture, with its answer."
    asked = _another(COLOURS, colour, rng) if rng.random() < .5 else colour
    question, answer = [('What colour is the square?', f'It is {colour}.'), ('What is behind it?', f'It is {ground}.'),
                        (f'Is it {asked}?', 'Yes.' if asked == colour else f'No, it is {colour}.')][rng.integers(0, 3)]
    turns = (('system', SYSTEM), ('human', f'<image>\n{question}'), ('gpt', answer))
    return dict(id=str(i), image=f'{i}.png', seen=[colour, ground],
                conversations=[dict(zip(('from', 'value'), t)) for t in turns])

def write_world(
    folder:Path, # where to
    seed:int=0, # of all chance
    n:int=256, # pictures
)->Path: # `folder`, with images, pairs.json and talks.json
    "Draw pictures and write records about them."
    rng = np.random.default_rng(seed)
    facts = [(str(rng.choice(list(COLOURS))), str(rng.choice(list(GROUNDS)))) for _ in range(n)]
    (folder/'images').mkdir(parents=True, exist_ok=True)
    for i, f in enumerate(facts): picture(*f, rng).save(folder/'images'/f'{i}.png')
    pairs = [pair_record(i, *f, rng) for i, f in enumerate(facts)]
    levels = levels_from_scores(np.array([p.pop('score') for p in pairs])).levels
    write_json([dict(p, similarity=int(l)) for p, l in zip(pairs, levels)], folder/'pairs.json')
    write_json([talk_record(i, *f, rng) for i, f in enumerate(facts)], folder/'talks.json')
    return folder

def base(
    folder:Path, # where to; what is there is taken
    width:int=48, # of the language model
    seed:int=0, # of the weights
    steps:int=300, # of reading
)->Path: # `folder`, with llm and clip
    "Make a language model and a tower."
    if (folder/'done').exists(): return folder
    write_world(folder/'world', seed + 1000, 600)
    texts = _texts(folder/'world')
    tokenizer = train_tokenizer(texts, 400)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2*width, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=512, initializer_range=.06,
                         bos_token_id=1, eos_token_id=3, pad_token_id=0)
    set_seed(seed)
    model = _read(LlamaForCausalLM(config), [tokenizer('<s>' + t).input_ids for t in texts], steps)
    model.save_pretrained(folder/'llm'); tokenizer.save_pretrained(folder/'llm')
    tiny_clip(folder/'clip', patch_size=8, num_hidden_layers=2)
    (folder/'done').touch()
    return folder

def _texts(world):
    "Texts of a world, each behind words that describe the picture in its place: what is learnt is to copy."
    pairs, talks, rng = read_json(world/'pairs.json'), read_json(world/'talks.json'), np.random.default_rng(0)
    out = []
    for p, k in zip(pairs, talks):
        said = p['conversations'][1]['value']
        seen = [said.split()[1]]*3 + [said.split()[-1]]*int(rng.integers(3, 9))
        out.append(' '.join(rng.permutation(seen)) + f' {said}\n')
        seen = ' '.join(rng.permutation([k['seen'][0]]*4 + [k['seen'][1]]*8))
        turns = [dict(role=r, content=c['value'].replace('<image>', seen))
                 for r, c in zip(('system', 'user', 'assistant'), k['conversations'])]
        out.append(render(turns, 'v1').text)
    return out

def _read(model, rows, steps, batch=16):
    "Train a language model on rows of tokens."
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        some = [torch.tensor(rows[i]) for i in rng.integers(0, len(rows), batch)]
        ids = torch.nn.utils.rnn.pad_sequence(some, True, 0)
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=ids.where(ids != 0, -100)).loss.backward()
        optimizer.step(); optimizer.zero_grad()
    return model

@dataclass(frozen=True)
class Plant:
    "A fault."
    name:str # what is wrong
    kind:int # number among the 24 kinds
    expects:tuple[str,...] # names of findings, any of which is right
    stage:str='pretrain' # where it is planted
    records:Callable|None=None # (records, rng) -> records
    samples:Callable|None=None # (samples, processor) -> samples
    model:Callable|None=None # changes it in place
    settings:dict = field(default_factory=dict) # of the stage
    callback:Callable|None=None # makes a callback of transformers
    resume:int=0 # step at which the run is stopped, and goes on
    more:Callable|None=None # records of a second file
    valid:bool=False # hold some samples out
    steps:int=20 # after which it should be named

@dataclass(frozen=True)
class Case:
    "A run of the small world."
    stage:str='pretrain' # or 'finetune'
    width:int=48 # of the language model
    seed:int=0 # of the world and of the run
    lora:int=0 # rank of adapters
    steps:int=100 # of training
    batch:int=16 # samples of a step

RATES = dict(pretrain=1e-2, finetune=2e-3, lora=1e-2) # of healthy runs

def settings(
    case:Case, # which run
    **changes, # fields that a fault changes
)->Any: # a `StageConfig`
    "The settings of a healthy run."
    usual = dict(learning_rate=RATES['lora' if case.lora else case.stage], batch_size=case.batch, accumulate=1,
                 max_steps=case.steps, precision='fp32', checkpointing=False, save_every=0, log_every=5, seed=case.seed,
                 image_aspect_ratio='pad', group='none', show=0)
    return override(PRETRAIN if case.stage == 'pretrain' else FINETUNE, **{**usual, **changes})

def begin(
    case:Case, # which run
    made:Path, # folder for what runs begin with
)->tuple: # (model, processor)
    "The model that a run begins with."
    home = base(made/f'base-{case.width}', case.width)
    if case.stage == 'pretrain':
        set_seed(case.seed)
        return from_base(home/'llm', home/'clip', dtype='float32', device='cpu', image_aspect_ratio='pad')
    if not (home/'pretrain'/'model').exists():
        plant_run(Case(width=case.width, seed=500, steps=200), made, home/'pretrain')
    model, processor = load(home/'pretrain'/'model', dtype='float32', device='cpu')
    set_seed(case.seed)
    add_gate(model)
    if case.lora: add_lora(model, case.lora, 2*case.lora)
    return model, processor.with_settings(template='v1', gate_text='prompt')

def plant_run(
    case:Case, # a healthy run
    made:Path, # folder for what runs begin with
    out:Path, # folder of the run; its records and pictures lie in `data`
    fault:Plant|None=None, # what is wrong with it
)->dict: # losses, steps, seconds
    "Train a run, healthy or spoilt."
    f = fault or Plant('none', 0, ())
    rng = np.random.default_rng(case.seed)
    files = _records(case, out/'data', f, rng)
    stage = settings(case, **f.settings)
    def go(steps):
        model, processor = begin(case, made)
        if f.model: f.model(model)
        processor = processor.with_settings(template=stage.template)
        data = InMemory(SampleDataset(Records(files, quiet=True), out/'data'/'images', processor, stage.max_length,
                                      stage.levels))
        if f.samples: data.samples = f.samples(data.samples, processor)
        held = _held(case, out, processor, stage) if f.valid else None
        record = dict(sources=[dict(path=str(p)) for p in files])
        extra = (f.callback(),) if f.callback else ()
        if steps: extra = (*extra, _Stop(steps))
        learnt = StageData(data, Collator(0), held)
        try: return run_stage(model, learnt, stage, out, processor, 'cpu', True, extra, record)
        except InterruptedError: return None
    if f.resume: go(f.resume)
    return go(0)

def _records(case, folder, f, rng):
    "Write the records of a run, spoilt or not."
    write_world(folder, case.seed)
    name = 'pairs.json' if case.stage == 'pretrain' else 'talks.json'
    records = read_json(folder/name)
    files = {name:f.records(records, rng) if f.records else records}
    if f.more: files['more.json'] = f.more(records, rng)
    for k, v in files.items(): write_json(v, folder/k)
    return [folder/k for k in files]

def _held(case, out, processor, stage):
    "Samples of another world."
    write_world(out/'held', case.seed + 77, 48)
    name = 'pairs.json' if case.stage == 'pretrain' else 'talks.json'
    return InMemory(SampleDataset(Records(out/'held'/name, quiet=True), out/'held'/'images', processor,
                                  stage.max_length, stage.levels))

class _Stop(TrainerCallback):
    "Stops a run after a checkpoint, as a power cut would."
    def __init__(self, step): self.step = step
    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step: raise InterruptedError

def _each(f): return lambda samples, processor: [f(dict(s), processor) for s in samples]
def _with(s, **more): return {**s, **more}
def _without(s, keep): return {**s, **{k:s[k][keep] for k in ('input_ids', 'labels', 'gate_mask')}}
def _turn(r, who, f): return {**r, 'conversations':[{**t, 'value':f(t['value'])} if t['from'] == who else t
                                                    for t in r['conversations']]}
def _answers(f): return lambda records, rng: [_turn(r, 'gpt', f) for r in records]
def _questions(f): return lambda records, rng: [_turn(r, 'human', f) for r in records]
def _levels(f): return lambda records, rng: [{**r, 'similarity':f(r['similarity'], rng)} for r in records]

def _other_template(name):
    "Encode again, in another template."
    def change(samples, processor):
        return [_again(s, processor, name) for s in samples]
    return change

def _again(s, processor, name):
    "A sample whose text is written as in another template: its marks are taken out, or others put in."
    text = processor.tokenizer.decode([i for i in s['input_ids'].tolist() if i < processor.align_token_id])
    text = text.replace('<s>', '').replace('</s>', '').replace(SYSTEM, '').replace('USER:', '').strip()
    question, _, answer = text.partition('ASSISTANT:')
    said = [dict(role='user', content=[dict(type='image'), dict(type='text', text=question.strip())]),
            dict(role='assistant', content=answer.strip())]
    new = processor.with_settings(template=name).encode(said)
    return {**s, **{k:new[k] for k in ('input_ids', 'labels', 'gate_mask')}}

def _bos(s, processor, n):
    "A sample with `n` first tokens."
    first = s['input_ids'][:1]
    return {**s, 'input_ids':torch.cat([first.repeat(n), s['input_ids'][1:]]),
            'labels':torch.cat([torch.full((n,), -100), s['labels'][1:]]),
            'gate_mask':torch.cat([torch.zeros(n, dtype=torch.bool), s['gate_mask'][1:]])}

def _all_text(s, processor):
    "Everything is learnt."
    ids = s['input_ids']
    return _with(s, labels=ids.where(ids < processor.align_token_id, -100))

def _raw_pixels(how):
    "Pixels as they came, or in another range."
    def change(s, processor):
        p = processor.image_processor
        mean, std = (torch.tensor(v)[:, None, None] for v in (p.image_mean, p.image_std))
        return _with(s, pixel_values=how(s['pixel_values']*std + mean)) if 'pixel_values' in s else s
    return _each(change)

def _others_pictures(records, rng):
    "Each record has the picture of another."
    names = [r['image'] for r in records]
    rng.shuffle(names)
    return [{**r, 'image':n} for r, n in zip(records, names)]

def _dead(model):
    "A first layer whose units are all off."
    with torch.no_grad(): model.projector[0].weight.mul_(0.); model.projector[0].bias.fill_(-50.)

def _layer(n):
    def change(model): model.config.vision_feature_layer = n
    return change

class _Frozen(TrainerCallback):
    "Someone froze a part after the optimizer was made, or changes one behind its back."
    def __init__(self, part, learns): self.part, self.learns = part, learns
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self.learns: getattr(model, self.part).requires_grad_(False)
    def on_step_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            for p in getattr(model, self.part).parameters() if self.learns else (): p.add_(1e-4)

class _Half(TrainerCallback):
    "What learns is held in bfloat16, and the rate is small against it."
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for p in model.parameters():
            if p.requires_grad: p.data = p.data.bfloat16()

class _Forget(TrainerCallback):
    "The optimizer's state is gone after an interruption."
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step: optimizer.state.clear()

def _gate_one(model):
    "A gate that gives all to level 2."
    with torch.no_grad(): model.gate.mlp[-1].bias[2] += 50.

def _gate_sharp(model):
    "A gate that decides for one level each time."
    with torch.no_grad():
        for l in (model.gate.mlp[0], model.gate.mlp[-1]): l.weight.mul_(200.)

def _double(records, rng): return [r if k % 2 else records[0] | dict(id=r['id']) for k, r in enumerate(records)]
def _in_order(records, rng): return sorted(records, key=lambda r: r['conversations'][-1]['value'])

TALK = dict(stage='finetune')
PLANTS = (
    Plant('template wrong', 1, ('template wrong',), **TALK, samples=_other_template('plain')),
    Plant('template twice', 1, ('template twice',), **TALK, records=_questions(
        lambda q: q.replace('<image>\n', '<image>\nUSER: ') + ' ASSISTANT:')),
    Plant('no first token', 2, ('no first token',), samples=_each(lambda s, p: _bos(s, p, 0))),
    Plant('two first tokens', 2, ('first token twice',), **TALK, samples=_each(lambda s, p: _bos(s, p, 2))),
    Plant('labels shifted', 3, ('labels shifted',), **TALK,
          samples=_each(lambda s, p: _with(s, labels=torch.cat([s['labels'][1:], torch.tensor([-100])])))),
    Plant('question learnt', 4, ('question learnt',), **TALK, samples=_each(_all_text)),
    Plant('end missing', 5, ('end missing',), **TALK, samples=_each(lambda s, p: _without(s, slice(0, -1)))),
    Plant("others' pictures", 6, ('picture unused',), steps=100, records=_others_pictures),
    Plant('one picture for all', 6, ('pictures same', 'picture unused'), **TALK,
          records=lambda rs, rng: [{**r, 'image':rs[0]['image'], 'id':r['id']} for r in rs],
          samples=lambda ss, p: [{**s, 'images':[f'{k}']} for k, s in enumerate(ss)]),
    Plant('dead projector', 7, ('projector dead',), model=_dead),
    Plant('pixels of 0 to 255', 8, ('pixels',), samples=_raw_pixels(lambda x: x*255)),
    Plant('mean and deviation of another tower', 8, ('pixels',), samples=_raw_pixels(lambda x: x*2 - 1)),
    Plant('last layer', 8, ('layer',), model=_layer(-1)),
    Plant('projector frozen', 9, ('part frozen', 'part still'), settings=dict(train='levels')),
    Plant('language model learns', 9, ('part learns', 'part moves'),
          settings=dict(train='projector,levels,language_model')),
    Plant('frozen behind the optimizer', 9, ('part still',), callback=lambda: _Frozen('projector', False)),
    Plant('tower moves', 9, ('part moves',), callback=lambda: _Frozen('vision_tower', True)),
    Plant('optimizer lost', 10, ('optimizer lost',), resume=10, settings=dict(save_every=10), callback=_Forget),
    Plant('rate times ten', 11, ('rate high',), steps=100, **TALK, settings=dict(learning_rate=RATES['finetune']*10)),
    Plant('rate by ten', 11, ('rate low',), steps=100, settings=dict(learning_rate=RATES['pretrain']/10)),
    Plant('no warm-up', 12, ('no warm-up',), settings=dict(warmup=0)),
    Plant('rounding', 13, ('precision',), **TALK, callback=_Half, settings=dict(learning_rate=2e-5)),
    Plant('sorted', 14, ('data sorted',), steps=30, records=_in_order, settings=dict(shuffle=False)),
    Plant('one source', 15, ('one source',), **TALK, more=lambda rs, rng: rs[:12]),
    Plant('duplicates', 16, ('duplicates',), records=_double),
    Plant('levels shifted', 17, ('levels shifted',), records=_levels(lambda l, rng: min(7, l + 1))),
    Plant('levels turned round', 17, ('levels shifted',), steps=100, records=_levels(lambda l, rng: (l + 3) % 8)),
    Plant('levels inverted', 18, ('levels inverted',), steps=100, records=_levels(lambda l, rng: 7 - l)),
    Plant('levels constant', 19, ('levels constant',), records=_levels(lambda l, rng: 3)),
    Plant('levels random', 20, ('levels random',), steps=100, records=_levels(lambda l, rng: int(rng.integers(0, 8)))),
    Plant('gate collapsed', 21, ('gate collapsed',), **TALK, model=_gate_one),
    Plant('gate saturated', 21, ('gate saturated', 'gate collapsed'), **TALK, model=_gate_sharp),
    Plant('answers cut', 22, ('answers cut',), **TALK, settings=dict(max_length=34)),
    Plant('control tokens in texts', 23, ('special text',), **TALK, records=_answers(lambda a: a + '</s>')),
    Plant('few data for many epochs', 24, ('over-fitting',), steps=100, **TALK, records=lambda rs, rng: rs[:16],
          valid=True, settings=dict(eval_every=20)),
)

def trial(
    case:Case, # a healthy run
    folder:Path, # for what runs begin with, and for the run
    fault:Plant|None=None, # what is planted
)->dict: # name, kind, seed, found, named
    "Train, examine, and say whether the fault was named."
    from aligngpt.insight.doctor import examine
    out = folder/'run'
    shutil.rmtree(out, ignore_errors=True)
    if fault: case = dataclasses.replace(case, stage=fault.stage, steps=fault.steps)
    plant_run(case, folder/'made', out, fault)
    found = [f.name for f in examine(out, images=out/'data'/'images', device='cpu').findings]
    named = bool({*found} & {*fault.expects}) if fault else not found
    kind = dict(kind=fault.kind, fault=fault.name) if fault else dict(fault='none')
    return dict(kind, **dataclasses.asdict(case), found=found, named=named, share=read_json(out/'watch.json')['share'])

def matrix(
    folder:Path, # for runs; `trials.jsonl` in it is added to
    seeds:tuple[int,...]=(1, 2, 3), # of each fault
    width:int=48, # of the language model
    names:tuple[str,...]=(), # of faults; all by default
)->list[dict]: # trials
    "Plant all faults."
    some = [p for p in PLANTS if p.name in names or not names]
    return _trials(folder, [(Case(width=width, seed=s), p) for s in seeds for p in some])

HEALTHY = [Case(stage, width, seed, lora)
           for width, seed in ((32, 20), (48, 21), (64, 22), (32, 23), (48, 24), (64, 25))
           for stage, lora in (('pretrain', 0), ('finetune', 0), ('finetune', 8))] + [
           Case('pretrain', 48, 26), Case('finetune', 48, 27)] # twenty

def healthy(
    folder:Path, # for runs; `trials.jsonl` in it is added to
)->list[dict]: # trials
    "Twenty healthy runs."
    return _trials(folder, [(c, None) for c in HEALTHY])

def _trials(folder, cases):
    "Those that were not yet."
    folder.mkdir(parents=True, exist_ok=True)
    path = folder/'trials.jsonl'
    done = [json.loads(l) for l in path.read_text().splitlines()] if path.exists() else []
    def key(c, p): return p.name if p else 'none', p.stage if p else c.stage, c.width, c.seed, c.lora
    known, out = {(r['fault'], r['stage'], r['width'], r['seed'], r['lora']):r for r in done}, []
    for c, p in cases:
        if key(c, p) not in known:
            known[key(c, p)] = r = trial(c, folder, p)
            with open(path, 'a') as f: f.write(json.dumps(r) + '\n')
            print('named ' if r['named'] else 'MISSED', *(r[x] for x in ('fault', 'stage', 'width', 'seed', 'found')))
        out.append(known[key(c, p)])
    return out

def record_healthy(
    folder:Path, # for runs
    seeds:tuple[int,...]=(100, 101, 102), # others than those of faults
    widths:tuple[int,...]=(32, 48, 64), # of language models
)->list[dict]: # for `trajectories.json` of the training
    "Record losses and gradient norms of healthy runs."
    out = []
    for width, (stage, lora) in ((w, s) for w in widths for s in (('pretrain', 0), ('finetune', 0), ('finetune', 8))):
        runs = [_course(Case(stage, width, s, lora), folder) for s in seeds]
        steps, vocabulary = runs[0]['steps'], runs[0]['vocabulary']
        out.append(dict(stage=stage, lora=bool(lora), width=width, vocabulary=vocabulary, steps=steps,
                        rate=RATES['lora' if lora else stage], losses=[r['losses'] for r in runs],
                        grads=[r['grads'] for r in runs]))
    return out

def _course(case, folder):
    "Losses and gradient norms of a healthy run, made once."
    kept = folder/'courses'/f'{case.stage}-{case.lora}-{case.width}-{case.seed}.json'
    if kept.exists(): return read_json(kept)
    shutil.rmtree(folder/'run', ignore_errors=True)
    plant_run(case, folder/'made', folder/'run')
    rows = [json.loads(l) for l in (folder/'run'/'log.jsonl').read_text().splitlines()]
    config = read_json(folder/'run'/'model'/'config.json')['text_config']
    kept.parent.mkdir(exist_ok=True)
    return read_json(write_json(dict(
        steps=[r['step'] for r in rows], losses=[round(r['loss'], 4) for r in rows],
        grads=[round(r['grad_norm'], 4) for r in rows], vocabulary=config['vocab_size']), kept))