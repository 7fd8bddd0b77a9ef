import dataclasses, math, re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

import numpy as np, torch

from aligngpt.text.conversation import Template, get_template
from aligngpt.checkpoints.layouts import guess_template
from aligngpt.training.settings import FINETUNE, PRETRAIN

class Kind(NamedTuple):
    "A line of the table."
    name:str # key in `FINDINGS`
    says:str # sentence, with gaps for facts
    do:str # the next thing to do, with gaps
    serious:bool=True # False: worth a look, the run may go on
    hides:tuple[str,...]=() # findings that this one explains
    about:str='batch' # what it is found in: 'batch', 'run', 'data', 'model'

FINDINGS = {k.name:k for k in (
    Kind('template wrong', 'the rows are not written in the template {template!r}: {why}',
         'train with the template of the language model: --template {better}',
         hides=('question learnt', 'end missing', 'template twice', 'special text', 'part still')),
    Kind('template twice', '{share:.0%} of the rows contain the marks of a template once more, such as {mark!r}: the '
         'texts were rendered before', 'take the marks out of the texts of the records; the template writes them',
         hides=('special text', 'end missing')),
    Kind('no first token', 'the rows do not begin with {bos!r}, the first token of the tokenizer',
         'encode with `processor.encode`, or put {bos!r} before each row'),
    Kind('first token twice', 'the rows begin with {bos!r} twice',
         'encode the rendered text with add_special_tokens=False: the template or the processor writes {bos!r}'),
    Kind('labels shifted', 'the labels are shifted by {by} against the tokens: the model shifts them itself',
         'give `labels` that equal `input_ids` where they are learnt, and -100 elsewhere',
         hides=('question learnt', 'end missing', 'loss high', 'rate high', 'rate low', 'picture unused',
                'loss start', 'part still')),
    Kind('question learnt', 'questions are learnt, in {share:.0%} of the rows: labels stand before the first answer',
         'set `labels` to -100 up to and including {mark!r}', hides=('loss start',)),
    Kind('end missing', '{share:.0%} of the answers end without {end!r}: the model will not stop',
         'let each answer end with {end!r}, and give it a label'),
    Kind('answers cut', '{share:.0%} of the rows are cut at {limit} tokens, within an answer',
         'allow longer rows: --max-length {better}, or leave such records out', hides=('end missing',)),
    Kind('special text', '{share:.0%} of the rows contain what looks like a control token, such as {mark!r}',
         'clean the texts: `aligngpt audit DATA` lists the records', serious=False),
    Kind('pixels', 'pixels are not prepared as the tower wants them: they lie between {low:.2f} and {high:.2f}; '
         'mean {mean} and deviation {std} make that {least:.2f} to {most:.2f}',
         'prepare pictures with the processor that belongs to the tower: `processor.prepare_images`',
         hides=('picture unused', 'projector dead')),
    Kind('layer', 'features come from layer {layer} of the tower; the release takes {usual}, the last but one',
         'set vision_feature_layer={usual}, and pre-train again', about='model'),
    Kind('pictures same', 'all pictures of a batch are the same', 'look at the pictures: `aligngpt show DATA --images '
         'FOLDER`', hides=('picture unused', 'projector dead')),
    Kind('picture unused', "the picture is not used: with another sample's picture the loss is {gain:+.1%} of itself "
         'higher (healthy: clearly above 0)',
         'check that each record has its own picture: `aligngpt show DATA --images FOLDER`; then the projector, and '
         'whether pre-training was done', hides=('levels random', 'levels inverted', 'levels shifted')),
    Kind('projector dead', 'the projector is dead: all pictures give the same tokens (their spread: {spread:.1e})',
         'begin with a new projector: pre-train again from --llm and --tower, with a lower rate',
         hides=('picture unused', 'part still', 'levels random', 'loss high'), about='model'),
    Kind('part frozen', '{part} is frozen, and in this stage of the release it learns',
         'name it: --train {train}', about='run', hides=('picture unused', 'loss high', 'levels random')),
    Kind('part learns', '{part} learns, and in this stage of the release it is frozen',
         'leave it out: --train {train}', about='run'),
    Kind('part still', '{part} should learn, and does not move: {why}',
         'let the optimizer have it: freeze with `freeze(model, stage.train)` before the trainer is made, and check '
         'its rate (--part-rates)', about='run', hides=('picture unused', 'loss high', 'rate low', 'levels random')),
    Kind('part moves', '{part} should be frozen, and moves', 'call `freeze(model, stage.train)` before the '
         'optimizer is made', about='run'),
    Kind('optimizer lost', 'the run went on at step {step}, and the optimizer began anew: its state is of step {found}',
         'go on from a checkpoint that holds optimizer.pt, or begin again in a new folder', about='run',
         hides=('loss high',)),
    Kind('rate high', 'the learning rate {rate:.1e} is {times:.0f} times what is usual here ({usual:.1e}), and {why}',
         'begin again with --learning-rate {usual:.0e}', about='run', hides=('loss high',)),
    Kind('rate low', 'the learning rate {rate:.1e} is a {times:.0f}th of what is usual here ({usual:.1e}), and {why}',
         'begin again with --learning-rate {usual:.0e}', about='run',
         hides=('loss high', 'picture unused', 'levels random')),
    Kind('no warm-up', 'there is no warm-up: the first step is at {share:.0%} of the peak rate',
         'give some steps of warm-up: --warmup 0.03', serious=False, about='run'),
    Kind('precision', 'updates are lost in rounding: {share:.0%} of the weights of {part} ({dtype}) stay as they are '
         'though they have a gradient', 'hold in float32 what learns: --precision bf16 or fp32, and no weights in '
         '{dtype}', about='run', hides=('part still', 'loss high', 'rate low', 'picture unused')),
    Kind('data sorted', 'the data come in an order: neighbouring batches share {near:.0%} of what they are about, '
         'others {far:.0%}', 'let them be shuffled: --shuffle', about='data', hides=('loss high', 'picture unused')),
    Kind('one source', '{share:.0%} of {n:,} samples come from {name}; the other sources hardly count',
         'weigh the files: --weights {weights}', serious=False, about='data'),
    Kind('duplicates', '{share:.0%} of the records occur more than once, such as {example}',
         'leave the copies out: `aligngpt audit DATA --out DIR` lists them', about='data'),
    Kind('levels constant', 'all levels are {level}: there is nothing to tell apart',
         'make levels of the scores: `aligngpt levels DATA --images FOLDER --clip CLIP --out FILE`', about='data',
         hides=('levels random', 'levels shifted')),
    Kind('levels shifted', 'the levels are shifted: {why}',
         'make the levels again, from 0 to {top}: `aligngpt levels`', about='data', hides=('levels random',)),
    Kind('levels inverted', 'the levels are upside down: what the picture does for a text falls with the level (rank '
         'correlation {rho:+.2f})', 'count them the other way: level = {top} - level, or make them again', about='data',
         hides=('levels random',)),
    Kind('levels random', 'the levels say nothing about how well text and picture agree (rank correlation {rho:+.2f} '
         'over {n} pairs)', 'check that scores were joined to the right records; make the levels again', about='data'),
    Kind('gate collapsed', 'the gate gives everything to level {level} ({most:.0%}), whatever is asked',
         'tune again from pre-training with --gate-norm, or with a lower rate for it: --part-rates gate=1e-5',
         serious=False, about='run'),
    Kind('gate saturated', 'the gate decides for a single level each time (entropy {entropy:.2f} of {full:.2f}): it '
         'learns no more', 'tune again from pre-training with --gate-norm', serious=False, about='run'),
    Kind('over-fitting', 'it learns by heart: the held-out loss rises since step {best} ({low:.2f} to {now:.2f}), '
         'while the training loss is {train:.2f}',
         'train for fewer epochs (--epochs {epochs:.2g}), or give it more data', about='run'),
    Kind('loss start', 'the loss begins at {loss:.2f}, above that of a guess among all tokens ({chance:.2f})',
         'look at a batch: `aligngpt show DATA --processor MODEL`', about='run'),
    Kind('loss high', 'the loss is above what is expected here ({loss:.2f}; {low:.2f} to {high:.2f}), and no cause was '
         'found', 'look at losses.png beside this report, then at a batch: `aligngpt show DATA --processor MODEL`',
         serious=False, about='run'),
    Kind('silent', 'it says nothing when asked {ask!r}', 'train with answers that end later; look for a '
         'missing end in the data: `aligngpt doctor DATA`', about='model'),
    Kind('endless', 'it does not stop: {share:.0%} of the answers reach {limit} tokens',
         'each answer must end with the end token in training: `aligngpt doctor DATA --processor MODEL`',
         about='model'),
    Kind('repeats', 'it repeats itself: {share:.0%} of the answers say a phrase three times and more',
         'train for longer, or lower the rate; ask with temperature 0.7', about='model', serious=False),
    Kind('same answer', 'it says the same to {n} different questions: {text!r}',
         'look for one source or one answer that dominates: `aligngpt doctor DATA`', about='model'),
    Kind('blind', 'answers are the same with the picture and without it, in {same} of {n} cases',
         'look whether the picture is used in training: `aligngpt doctor RUN --data DATA --images FOLDER`',
         about='model'),
    Kind('levels idle', 'all levels give the same answers ({n} questions): the knob does nothing',
         'pre-train with levels: `aligngpt levels`, then `aligngpt pretrain`', about='model', serious=False),
    Kind('marks said', 'answers contain marks of a template, such as {mark!r}',
         'check the template of the data: `aligngpt doctor DATA --processor MODEL`', about='model'),
)}

@dataclass(frozen=True)
class Finding:
    "Something that is wrong, or worth a look."
    name:str # key in `FINDINGS`
    sure:float=1. # probability that it is so, as the probe sees it
    since:int|None=None # step; None: from the beginning
    facts:dict = field(default_factory=dict) # fill the gaps of the sentence

    def __post_init__(self): self.says, self.do # a fact that lacks is an error here, not in a report

    @property
    def kind(self)->Kind: # of the table
        "The line of the table."
        return FINDINGS[self.name]

    @property
    def says(self)->str: # a sentence
        "What is wrong."
        return self.kind.says.format(**self.facts)

    @property
    def do(self)->str: # such as a command
        "What to do."
        return self.kind.do.format(**self.facts)

    @property
    def how_sure(self)->str: # in words
        "Certain, very likely, likely, or possible."
        return next(word for least,word in SURE if self.sure >= least)

    def __str__(self):
        since = f'since step {self.since}' if self.since else 'from the beginning'
        return f'{self.name}: {self.says} ({since}, {self.how_sure}). Next: {self.do}.'

    def to_dict(self)->dict: # JSON types
        "For a file."
        return dict(name=self.name, sure=self.sure, since=self.since, facts=self.facts, says=self.says, do=self.do)

SURE = (.95, 'certain'), (.8, 'very likely'), (.5, 'likely'), (0., 'possible')

def from_dict(
    d:dict, # from `Finding.to_dict`
)->Finding|None: # None for a name of another release
    "Read a finding."
    return Finding(**{k:d[k] for k in ('name', 'sure', 'since', 'facts')}) if d.get('name') in FINDINGS else None

def unexplained(
    findings:list[Finding], # in any order
)->list[Finding]: # serious ones first
    "Each name once, without what another finding explains."
    first = {}
    for f in findings: first.setdefault(f.name, f)
    hidden = {h for f in first.values() if f.sure >= .5 for h in f.kind.hides}
    left = [f for n,f in first.items() if n not in hidden]
    return sorted(left, key=lambda f: (not f.kind.serious, -f.sure))

class Row(NamedTuple):
    "A sample of a batch, without padding."
    ids:list[int] # tokens and placeholders
    labels:list[int] # -100 where nothing is learnt

@dataclass
class Facts:
    "What is known of a run."
    stage:Any=None # its `StageConfig`
    processor:Any=None # that the model came with
    config:Any=None # of the model
    rows:list = field(default_factory=list) # of `Row`
    levels:Counter = field(default_factory=Counter) # level -> samples
    about:list = field(default_factory=list) # for each step what its samples are about, a list of numbers
    pixels:dict = field(default_factory=dict) # from `pixel_facts`
    spread:list = field(default_factory=list) # (step, spread of the image tokens over pictures)
    gains:list = field(default_factory=list) # (step, loss with other pictures / loss - 1)
    parts:dict = field(default_factory=dict) # part -> what is known of it
    rates:list = field(default_factory=list) # (step, rate / peak) of the first steps
    resumed:tuple|None=None # (step at which the run went on, step of the optimizer's state)
    log:list = field(default_factory=list) # lines of log.jsonl
    steps:int=0 # done
    planned:int=0 # steps of the whole run
    samples:int=0 # of the data
    lora:bool=False # adapters in the language model?
    names:dict = field(default_factory=dict) # id -> text, filled as needed
    read:list = field(default_factory=list) # the rows as text, filled as needed

PROBES:dict[str,list[Callable]] = dict(batch=[], run=[]) # functions of `Facts`, by when they are asked

def probe(
    when:str, # key in `PROBES`
)->Callable: # a decorator
    "Enter a probe into the list."
    def enter(f): PROBES[when].append(f); return f
    return enter

def ask_probes(
    when:str, # key in `PROBES`
    facts:Facts, # that they look at
)->list[Finding]: # explained ones left out
    "Ask all probes of a kind."
    found = [p(facts) for p in PROBES[when]]
    return unexplained([f for f in found if f is not None])

def rows_of(
    batch:dict, # of the model's inputs, with `labels`
    most:int=16, # samples
)->list[Row]: # without padding
    "The first samples of a batch as lists."
    ids, labels = batch['input_ids'][:most], batch['labels'][:most]
    if (sample := batch.get('sample_ids')) is None:
        mask = batch.get('attention_mask')
        keep = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.dim() != 2 else mask[:most].bool()
        return [Row(i[k].tolist(), l[k].tolist()) for i,l,k in zip(ids, labels, keep)]
    sample = sample[:most]
    here = [sample == s for s in sample.unique().tolist()[:most] if s >= 0]
    return [Row(ids[k].tolist(), labels[k].tolist()) for k in here]

class Reading(NamedTuple):
    "A row as text."
    text:str # without the placeholders and spaces
    learnt:list[bool] # of each character
    special:list[bool] # is each character of a control token?

def read_row(
    row:Row, # what to read
    facts:Facts, # has the processor
)->Reading: # its text
    "Read a row."
    p = facts.processor
    out = [(c, l != -100, i in _special(facts)) for i,l in zip(row.ids, row.labels)
           if i not in (p.image_token_id, p.align_token_id) for c in _name(i, facts)]
    return Reading(''.join(c for c,*_ in out), [l for _,l,_ in out], [s for *_,s in out])

def readings(
    facts:Facts, # with rows
)->list[Reading]: # one for each row
    "All rows, each read once."
    facts.read += [read_row(r, facts) for r in facts.rows[len(facts.read):]]
    return facts.read

def _name(i, facts):
    "The text of a token, without spaces."
    if i not in facts.names: facts.names[i] = squeeze(facts.processor.tokenizer.decode([i]))
    return facts.names[i]

def _special(facts):
    "Ids of control tokens."
    if 'special' not in facts.names: facts.names['special'] = set(facts.processor.tokenizer.all_special_ids)
    return facts.names['special']

def squeeze(
    text:str, # any
)->str: # with line breaks, without other white space
    "Text without spaces."
    return re.sub(r'[^\S\n]+', '', text)

def marks_of(
    facts:Facts, # has the processor
)->Template: # as rows have it: filled, without spaces
    "The template of a run."
    t = get_template(facts.processor.template).fill(*facts.processor.ends)
    texts = {k:squeeze(v) for k,v in vars(t).items() if isinstance(v, str) and k != 'name'}
    return dataclasses.replace(t, **texts)

@probe('batch')
def first_token(
    facts:Facts, # with rows
)->Finding|None:
    "No first token, or two."
    bos = facts.processor.tokenizer.bos_token_id if facts.rows and facts.processor else None
    if bos is None or not _begins(facts): return None
    own = [[i for i in r.ids[:8] if i not in (facts.processor.image_token_id, facts.processor.align_token_id)]
           for r in facts.rows]
    said = dict(bos=facts.processor.tokenizer.bos_token)
    if _most(ids[:1] != [bos] for ids in own): return Finding('no first token', facts=said)
    if _most(ids[:2] == [bos, bos] for ids in own): return Finding('first token twice', facts=said)

def _begins(facts):
    "Would the processor begin with the first token?"
    return facts.processor.encoder('a').ids[:1] == [facts.processor.tokenizer.bos_token_id]

def _share(some):
    "Share of what is true."
    some = list(some)
    return sum(some)/max(1, len(some))

def _most(some): return _share(some) > .5

@probe('batch')
def shifted_labels(
    facts:Facts, # with rows
)->Finding|None:
    "Labels that are the next token, or the one before."
    same = {by:_agree(facts.rows, by) for by in (0, 1, -1)}
    best = max(same, key=same.get)
    if best and same[0] < .5 and same[best] > .9: return Finding('labels shifted', facts=dict(by=best))

def _agree(rows, by):
    "Share of labels that equal the token `by` places further."
    hits = [r.ids[k + by] == l for r in rows for k,l in enumerate(r.labels) if l != -100 and 0 <= k + by < len(r.ids)]
    return _share(hits)

@probe('batch')
def template_of_rows(
    facts:Facts, # with rows
)->Finding|None:
    "Rows in another template than the processor names."
    if not (facts.rows and facts.processor): return None
    t, texts = marks_of(facts), [x.text for x in readings(facts)]
    name, guess = t.name, guess_template(facts.processor.tokenizer)
    lacks = next((m for m in (t.before_user, t.before_answer) if m and _most(m not in x for x in texts)), '')
    if lacks: return Finding('template wrong', 1., None, dict(template=name, better=name, why=f'there is no {lacks!r}'))
    if not t.before_answer and _most(any(m in x for m in _headers()) for x in texts):
        return Finding('template wrong', 1., None, dict(template=name, better='v1', why='they are conversations'))
    if t.before_answer and guess not in (name, 'v1'):
        why = f'the tokenizer has the marks of {guess}'
        return Finding('template wrong', .7, None, dict(template=name, better=guess, why=why))

def _headers():
    "What answers begin with in the templates."
    from aligngpt.text.conversation import TEMPLATES
    return [h for t in TEMPLATES.values() if (h := squeeze(t.before_answer))]

@probe('batch')
def template_twice(
    facts:Facts, # with rows
)->Finding|None:
    "Marks of a template inside of the texts."
    if not (facts.rows and facts.processor): return None
    t = marks_of(facts)
    read = readings(facts)
    marks = {t.before_user, t.before_answer, *_headers()} - {''}
    twice = [next((m for m in marks if x.text.count(m) > (_answers(x) if m == t.before_answer or m == t.before_user
                                                          else 0)), '') for x in read]
    if (share := _share(map(bool, twice))) >= .1:
        return Finding('template twice', 1., None, dict(share=share, mark=next(filter(None, twice))))

def _answers(reading):
    "How many answers a row has: runs of learnt characters."
    return sum(l and not before for l,before in zip(reading.learnt, [False, *reading.learnt]))

@probe('batch')
def question_learnt(
    facts:Facts, # with rows
)->Finding|None:
    "Labels before the first answer."
    if not (facts.rows and facts.processor) or not (header := marks_of(facts).before_answer): return None
    read = readings(facts)
    asked = [any(x.learnt[:x.text.find(header) + len(header)]) for x in read if header in x.text]
    if (share := _share(asked)) > .5: return Finding('question learnt', 1., None, dict(share=share, mark=header))

@probe('batch')
def answer_ends(
    facts:Facts, # with rows
)->Finding|None:
    "Answers that end without the end token, or are cut."
    if not (facts.rows and facts.processor) or not (end := marks_of(facts).answer_end): return None
    limit = facts.stage.max_length if facts.stage else math.inf
    cut = [len(r.ids) >= limit and not _ends(x, end) for r,x in zip(facts.rows, readings(facts))]
    if (share := _share(cut)) >= .05:
        return Finding('answers cut', 1., None, dict(share=share, limit=limit, better=2*limit))
    open_ = [not _ends(x, end) for x,c in zip(readings(facts), cut) if not c]
    if (share := _share(open_)) > .5: return Finding('end missing', 1., None, dict(share=share, end=end))

def _ends(reading, end):
    "Does the last learnt text end as it should?"
    last = max((k for k,l in enumerate(reading.learnt) if l), default=-1)
    return reading.text[:last+1].endswith(end)

_SPECIAL = re.compile(r'<\|[a-z_]{2,30}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:unk|pad|bos|eos|image)>')

@probe('batch')
def special_text(
    facts:Facts, # with rows
)->Finding|None:
    "Control tokens as letters."
    if not (facts.rows and facts.processor): return None
    found = [_typed(x, marks_of(facts)) for x in readings(facts)]
    if (share := _share(map(bool, found))) >= .1:
        return Finding('special text', .9, None, dict(share=share, mark=next(filter(None, found))))

def _typed(x, t):
    "The first control token that is letters, and no mark of the template."
    marks = ''.join(v for k,v in vars(t).items() if isinstance(v, str) and k not in ('name', 'system', 'answer_end'))
    found = (m for m in _SPECIAL.finditer(x.text) if not all(x.special[m.start():m.end()]))
    return next((m[0] for m in found if m[0] not in marks), '')

def pixel_facts(
    pixels:torch.Tensor, # [n_images, 3, height, width]
)->dict: # some values of the first pictures, and whether all pictures are the same
    "Look at a few pixels."
    flat = pixels[:4].flatten(2)
    some = flat[..., ::max(1, flat.shape[-1]//64)].float().cpu()
    same = len(pixels) >= 4 and bool((pixels[1:4] == pixels[:1]).all())
    return dict(values=some.transpose(0, 1).flatten(1).tolist(), same=same)

@probe('batch')
def pixels_wrong(
    facts:Facts, # with pixels
)->Finding|None:
    "Pixels that the processor would not have made, or that are all the same."
    if not facts.pixels or not facts.processor: return None
    if facts.pixels['same']: return Finding('pictures same', .9)
    p = facts.processor.image_processor
    mean, std = (torch.tensor(v)[:, None] for v in (p.image_mean, p.image_std))
    x = torch.tensor(facts.pixels['values'])
    back = (x*std + mean)*255
    whole = ((back - back.round()).abs() < .05).float().mean().item()
    inside = ((back > -.6) & (back < 255.6)).float().mean().item()
    if whole > .9 and inside > .99: return None
    ends = [((v - mean)/std) for v in (0, 1)]
    return Finding('pixels', min(1., 1.5 - whole), None, dict(
        low=x.min().item(), high=x.max().item(), least=ends[0].min().item(), most=ends[1].max().item(),
        mean=[round(v, 2) for v in mean.flatten().tolist()], std=[round(v, 2) for v in std.flatten().tolist()]))

@probe('run')
def tower_layer(
    facts:Facts, # with the configuration
)->Finding|None:
    "Features of an unusual layer."
    usual, c = -2, facts.config
    if c is None or c.vision_feature_layer in (usual, c.vision_config.num_hidden_layers + 1 + usual): return None
    return Finding('layer', .8, None, dict(layer=c.vision_feature_layer, usual=usual))

def usual_parts(
    name:str, # of a stage
)->set[str]: # empty for a stage of one's own
    "The parts that learn in a stage of the release."
    return set(next((s.train for s in (PRETRAIN, FINETUNE) if s.name == name), ()))

@probe('run')
def parts_named(
    facts:Facts, # with the stage
)->Finding|None:
    "Parts that learn or are frozen against the release."
    if facts.stage is None or not (usual := usual_parts(facts.stage.name)): return None
    train, has_gate = set(facts.stage.train), facts.config is None or facts.config.use_gate
    if less := usual - train - (set() if has_gate else {'gate'}):
        return Finding('part frozen', .8, None, dict(part=min(less), train=','.join(sorted(usual | train))))
    if more := train - usual - ({'levels', 'vision_tower'} if facts.stage.name == 'finetune' else set()):
        return Finding('part learns', .8, None, dict(part=min(more), train=','.join(sorted(usual & train))))

@probe('run')
def parts_move(
    facts:Facts, # with parts, after some steps
)->Finding|None:
    "A part that does not do what the stage says."
    for part,p in facts.parts.items():
        if p['learns'] and p.get('stuck', 0) > .5 and p.get('dtype') in ('bfloat16', 'float16'):
            return Finding('precision', .9, p['step'], dict(part=part, share=p['stuck'], dtype=p['dtype']))
    for part,p in facts.parts.items():
        if p['learns'] and not p['moved']:
            why = 'it has no gradient' if p.get('grad') == 0 else 'its numbers are what they were'
            return Finding('part still', 1., p['step'], dict(part=part, why=why))
        if p['moved'] and not p['learns']: return Finding('part moves', 1., p['step'], dict(part=part))

@probe('run')
def projector_dead(
    facts:Facts, # with the spread of the image tokens
)->Finding|None:
    "Image tokens that do not depend on the picture."
    if not facts.spread or max(s for _,s in facts.spread) > 1e-3: return None
    step, spread = facts.spread[0]
    return Finding('projector dead', .95, step, dict(spread=spread))

@probe('run')
def picture_unused(
    facts:Facts, # with gains
    least:float=.004, # of the loss
)->Finding|None:
    "Pictures that do nothing for the loss, late in the run."
    late = [(s, g) for s,g in facts.gains if s >= 60]
    if len(late) < 2 or max(g for _,g in late) > least: return None
    return Finding('picture unused', .6, late[0][0], dict(gain=sum(g for _,g in late)/len(late)))

@probe('run')
def levels_counted(
    facts:Facts, # with levels
    least:int=160, # samples
)->Finding|None:
    "Levels that are all the same, or lack one end."
    if (n := facts.levels.total()) < 32 or facts.config is None: return None
    top, seen = facts.config.num_levels - 1, sorted(facts.levels)
    if len(seen) == 1: return Finding('levels constant', min(1., .6 + n/400), None, dict(level=seen[0]))
    ends = [k for k in (0, top) if not facts.levels[k]]
    if n < least or len(ends) != 1 or set(range(1, top)) - set(seen): return None
    return Finding('levels shifted', .9, None, dict(why=f'level {ends[0]} never occurs in {n} samples', top=top))

@probe('run')
def data_sorted(
    facts:Facts, # with what each step was about
    least:int=12, # steps
)->Finding|None:
    "Neighbouring batches that are alike."
    rows = [b for b in facts.about if b][:120]
    if len(rows) < least: return None
    near, far, z = _neighbours(rows)
    if z > 5 and near - far > .1:
        return Finding('data sorted', min(.99, .5 + z/20), None, dict(near=near, far=far))

def _neighbours(rows):
    "Mean overlap of neighbours and of all pairs, and how far apart they are, in deviations."
    keys = {k:i for i,k in enumerate(sorted({k for r in rows for k in r}))}
    x = np.zeros((len(rows), len(keys)))
    for i,r in enumerate(rows):
        for k in r: x[i, keys[k]] += 1/len(r)
    def overlap(lag): return np.minimum(x[lag:], x[:-lag]).sum(-1)
    near, others = overlap(1), np.concatenate([overlap(max(2, len(rows)*k//8)) for k in (2, 3, 4, 5)])
    z = (near.mean() - others.mean())/(others.std()/math.sqrt(len(near)) + 1e-3)
    return float(near.mean()), float(others.mean()), float(z)

@probe('run')
def optimizer_lost(
    facts:Facts, # of a run that went on
)->Finding|None:
    "A run that went on without its optimizer."
    if not facts.resumed or facts.resumed[1] >= facts.resumed[0]: return None
    step, found = facts.resumed
    return Finding('optimizer lost', 1., step, dict(step=step, found=found))

@probe('run')
def no_warmup(
    facts:Facts, # with the rates of the first steps
)->Finding|None:
    "A first step at the full rate."
    if facts.stage is None or facts.stage.warmup or not facts.rates or facts.rates[0][0] > 1: return None
    share = facts.rates[0][1]
    return Finding('no warm-up', .95, None, dict(share=share)) if share > .5 else None

@probe('run')
def gate_decides(
    facts:Facts, # with a log
)->Finding|None:
    "A gate that always gives the same level, or one level at a time."
    rows = [r for r in facts.log if 'gate_entropy' in r][-3:]
    if not rows: return None
    alpha = {int(k[6:]):np.mean([r[k] for r in rows]) for k in rows[0] if k.startswith('alpha_')}
    level, entropy = max(alpha, key=alpha.get), float(np.mean([r['gate_entropy'] for r in rows]))
    since = _since(facts.log, lambda r: r.get('gate_entropy', 9) < .2)
    if alpha[level] > .95:
        return Finding('gate collapsed', .9, since, dict(level=level, most=float(alpha[level])))
    if entropy < .1*math.log(len(alpha)):
        return Finding('gate saturated', .9, since, dict(entropy=entropy, full=math.log(len(alpha))))

def _since(log, bad):
    "The first step from which on all lines are bad."
    good = [k for k,r in enumerate(log) if not bad(r)]
    rest = log[good[-1] + 1:] if good else log
    return rest[0]['step'] if rest else None

@probe('run')
def over_fitting(
    facts:Facts, # with evaluations in the log
)->Finding|None:
    "A held-out loss that rises while the training loss falls."
    held = [(r['step'], r['eval_loss']) for r in facts.log if 'eval_loss' in r]
    train = [r['loss'] for r in facts.log if 'loss' in r]
    if len(held) < 3 or not train: return None
    best, low = min(held, key=lambda x: x[1])
    now, loss = held[-1][1], train[-1]
    if best == held[-1][0] or now < 1.1*low or loss > .8*now: return None
    done = facts.stage.epochs if facts.stage and facts.stage.max_steps < 0 else _epochs(facts)
    return Finding('over-fitting', .9, best, dict(best=best, low=low, now=now, train=loss,
                                                  epochs=done*best/max(held[-1][0], 1)))

def _epochs(facts):
    "How often the data were seen."
    s = facts.stage
    return facts.steps*s.batch_size*s.accumulate/facts.samples if s and facts.samples else 1.