import base64, dataclasses, io, json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligngpt.core.errors import AlignGPTError, os_errors
from aligngpt.core.files import atomic_path, checkpoint_folder, read_json, what_is, write_json
from aligngpt.core.markup import escape, html_page
from aligngpt.data.images import Sources
from aligngpt.insight.records import data_findings
from aligngpt.training.signs import Facts, Finding, ask_probes, from_dict, unexplained

@dataclass
class Verdict:
    "What an examination came to."
    what:str # was examined: 'run', 'data' or 'model'
    name:str # its folder or file
    findings:list[Finding] # serious ones first
    looked:list[str] # what was looked at
    left:list[str] # what was not, and why
    losses:list[tuple[int,float]] = field(default_factory=list) # (step, loss) of a run
    norms:list[tuple[int,float]] = field(default_factory=list) # (step, gradient norm) of a run
    band:Any=None # what was expected, a `Band`
    said:Any=None # the answers of a model

    @property
    def healthy(self)->bool: # nothing serious was found
        "Is nothing seriously wrong?"
        return not any(f.kind.serious for f in self.findings)

    @property
    def verdict(self)->str: # a sentence
        "What comes first."
        n = sum(f.kind.serious for f in self.findings)
        if n: return f'{self.name}: not healthy: {self.findings[0].says}'
        more = f'; {len(self.findings)} {"note" if len(self.findings) == 1 else "notes"}' if self.findings else ''
        return f'{self.name}: healthy, as far as was looked{more}'

    def __str__(self):
        lines = [self.verdict, *(f'- {f}' for f in self.findings), f"looked at: {'; '.join(self.looked) or 'nothing'}"]
        return '\n'.join(lines + [f'not looked at: {x}' for x in self.left])

    __repr__ = __str__
    def to_dict(self)->dict: # JSON types
        "For a file."
        return dict(what=self.what, healthy=self.healthy, verdict=self.verdict, looked=self.looked, left=self.left,
                    findings=[f.to_dict() for f in self.findings])

def examine(
    path:str|Path, # run, records or model
    data:Any=None, # records of a run, if they are not where they were
    images:Any=None, # pictures of the records
    processor:Any=None, # to see records as tokens; or where it is
    device:str='auto', # for models
    samples:int=160, # that a model is shown
    talk:bool=True, # ask a model the twelve questions
)->Verdict:
    "Examine a run, records, or a model."
    path = Path(path) if not isinstance(path, (list, tuple)) else path
    if isinstance(path, Path):
        if not path.exists():
            raise AlignGPTError(f'{path}: there is nothing', 'name the folder of a run or a model, or records')
        stages = [p for p in (path, path/'pretrain', path/'finetune') if (p/'stage.json').exists()]
        if stages: return _together(path, [examine_run(p, data, images, device, samples) for p in stages])
        if path.is_dir() and 'AlignGPT' in what_is(path)[0]: return examine_model(path, device)
    return examine_data(path, images, processor)

def _together(path, verdicts):
    "One verdict of several stages."
    if len(verdicts) == 1: return verdicts[0]
    last = verdicts[-1]
    found = sorted((f for v in verdicts for f in v.findings), key=lambda f: not f.kind.serious)
    def said(k): return [f'{Path(v.name).name}: {x}' for v in verdicts for x in getattr(v, k)]
    return dataclasses.replace(last, name=str(path), findings=found, looked=said('looked'), left=said('left'))

def examine_data(
    path:Any, # records, or a list of files
    images:Any=None, # their pictures
    processor:Any=None, # of a model, or its folder
)->Verdict:
    "Examine records before anything is trained on them."
    records, _ = Sources(path, images).open(quiet=True)
    if isinstance(processor, (str, Path)): processor = _processor(processor)
    found = data_findings(records, processor=processor)
    left = [] if processor is not None else ['tokens (name a model: --processor)']
    if (n := len(records.problems)): left.append(f'{n:,} bad records (`aligngpt audit` lists them)')
    name = str(path) if isinstance(path, (str, Path)) else ', '.join(map(str, path))
    looked = [f'{len(records):,} records', *(['tokens'] if processor is not None else [])]
    return Verdict('data', name, found, looked, left)

def _processor(path):
    "The processor of a model."
    from aligngpt.model.processor import AlignGPTProcessor
    return AlignGPTProcessor.from_pretrained(checkpoint_folder(path))

def examine_run(
    folder:Path, # of a stage, with stage.json
    data:Any=None, # its records, if they are not where they were
    images:Any=None, # its pictures, likewise
    device:str='auto', # for the model
    samples:int=160, # that the model is shown
)->Verdict:
    "Examine a run."
    facts, watched, record = run_facts(folder)
    looked, left, found = ['settings', f'{len(facts.log):,} lines of the log'], [], []
    if watched: looked.append(f"what the watch saw until step {watched['step']:,}")
    else: left.append('batches (the run was not watched: --watch)')
    found += [f for f in map(from_dict, watched.get('findings', [])) if f] + ask_probes('run', facts)
    records, sources = _records(folder, record, data, images, facts)
    if records is None: left.append(f'records ({sources}; name them: --data)')
    else:
        looked.append(f'{len(records):,} records')
        found += data_findings(records, max_length=facts.stage.max_length, **_levels_of(facts))
        known = found, looked, left
        found, looked, left = _with_model(folder, facts, (records, sources), device, samples, known)
    rows = [r for r in facts.log if 'loss' in r]
    return Verdict('run', str(folder), unexplained(found), looked, left, [(r['step'], r['loss']) for r in rows],
                   [(r['step'], r['grad_norm']) for r in rows if 'grad_norm' in r], _band(facts, watched))

def _levels_of(facts): return dict(n_levels=facts.config.num_levels) if facts.config else {}

def run_facts(
    folder:Path, # of a stage
)->tuple[Facts,dict,dict]: # facts, what the watch wrote, stage.json
    "Read what a run left."
    from aligngpt.training.settings import KINDS, StageConfig
    record, log = read_json(folder/'stage.json'), folder/'log.jsonl'
    said = {k:tuple(v) if isinstance(v, list) else v for k,v in record['stage'].items() if k in KINDS}
    watched = read_json(folder/'watch.json') if (folder/'watch.json').exists() else {}
    facts = Facts(StageConfig(**said), config=_config(folder), samples=record.get('samples') or 0)
    facts.log = [json.loads(l) for l in _lines(log)] if log.exists() else []
    facts.steps = facts.planned = facts.log[-1]['step'] if facts.log else 0
    facts.lora = bool(record.get('lora'))
    for k in ('parts', 'spread', 'gains', 'rates', 'resumed'):
        if watched.get(k): setattr(facts, k, watched[k])
    facts.levels = Counter({int(k):n for k,n in watched.get('levels', {}).items()})
    return facts, watched, record

def _lines(path):
    with os_errors(path): return [l for l in path.read_text().splitlines() if l.startswith('{') and l.endswith('}')]

def _config(folder):
    "The configuration of the model, or of the last checkpoint."
    from aligngpt.model.layers import AlignGPTConfig
    from aligngpt.training.runs import last_checkpoint
    at = next((p for p in (folder/'model', last_checkpoint(folder)) if p and (p/'config.json').exists()), None)
    return AlignGPTConfig.from_pretrained(at) if at else None

def _band(facts, watched):
    "What was expected; the entropy of the answers is the one that the watch noted."
    from aligngpt.training.bands import expected, theory_band
    if (band := expected(facts)) or facts.config is None or not watched.get('entropy'): return band
    return theory_band(facts.config.text_config.vocab_size, watched['entropy'], max(100, facts.planned//10))

def _records(folder, record, data, images, facts):
    "(records, sources) of a run, or (None, why not)."
    files = data or [folder/s['path'] for s in record.get('sources', ()) if s.get('path')]
    if not files: return None, 'the run names none'
    files = [files] if isinstance(files, (str, Path)) else list(files)
    if gone := [f for f in files if not Path(f).exists()]: return None, f'{Path(gone[0]).name} is not where it was'
    sources = Sources(files, images)
    n = facts.config.num_levels if facts.config else 8
    return sources.open(n, quiet=True)

def _with_model(folder, facts, opened, device, samples, known):
    "Show the model some samples, if it is there."
    from aligngpt.checkpoints.layouts import load
    (records, images), (found, looked, left) = opened, known
    if not (folder/'model'/'config.json').exists(): return found, looked, [*left, 'the model (the run is not finished)']
    if all(i is None for i in images): return found, looked, [*left, 'the model (name the pictures: --images)']
    try: model, processor = load(folder/'model', device=device, dtype='auto')
    except AlignGPTError as e: return found, looked, [*left, f'the model ({e.message})']
    seen = _look(model, processor, records, images, facts, samples)
    if len(seen.gain) < 16: return found, looked, [*left, 'the model (too few samples with a picture)']
    return found + ask_probes('look', seen), [*looked, f'{len(seen.gain)} samples with other pictures'], left

def _look(model, processor, records, images, facts, samples):
    "Samples of a run under its model."
    from aligngpt.data.batches import Collator, SampleDataset
    from aligngpt.insight.looks import look, some_samples
    processor = processor.with_settings(template=facts.stage.template)
    data = SampleDataset(records, images, processor, facts.stage.max_length, facts.stage.levels, policy='skip')
    seen = look(model, some_samples(data, samples), Collator(processor.tokenizer.pad_token_id or 0))
    seen.steps = facts.steps
    return seen

def examine_model(
    path:Any, # a folder; or a model with its processor
    device:str='auto', # where to
    tokens:int=32, # of an answer, at most
)->Verdict:
    "Examine a model that has no run."
    from aligngpt.checkpoints.layouts import open_model
    from aligngpt.insight.talk import talk
    model, processor = open_model(path, device=device) if isinstance(path, (str, Path)) else path
    said = talk(model.eval(), processor, tokens=tokens)
    found = ask_probes('run', Facts(config=model.config)) + ask_probes('talk', said)
    looked = ['configuration', f'{len(said.answers)} answers to twelve questions']
    name = str(path) if isinstance(path, (str, Path)) else type(model).__name__
    return Verdict('model', name, unexplained(found), looked, ['training (there is no run folder)'], said=said)

def plot_course(
    verdict:Verdict, # of a run
): # a matplotlib figure
    "Loss and gradient norm over the steps, with what was expected, and where findings begin."
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout='constrained')
    for ax, rows, name in zip(axes, (verdict.losses, verdict.norms), ('loss', 'gradient norm')):
        if rows: ax.plot(*zip(*rows))
        ax.set(xlabel='step', ylabel=name, yscale='log')
        for f in verdict.findings:
            if f.since: ax.axvline(f.since, color='C3', lw=.8, ls=':')
    if verdict.band and verdict.losses: _shade(axes[0], verdict.band, verdict.losses[-1][0])
    if verdict.band: axes[0].set_title(f'shaded: {verdict.band.why}', fontsize=8)
    return fig

def _shade(ax, band, last):
    "The band, to the end of the run."
    steps = sorted({*(s for s in band.steps if s < last), last})
    low, high = zip(*(band.at(s) for s in steps))
    ax.fill_between(steps, [max(l, 1e-3) for l in low], high, alpha=.15, lw=0)

def write_verdict(
    verdict:Verdict, # what to write
    out:str|Path, # folder
)->Path: # doctor.html; doctor.json and losses.png lie beside it
    "Write the report."
    out = Path(out)
    with os_errors(out): out.mkdir(parents=True, exist_ok=True)
    write_json(verdict.to_dict(), out/'doctor.json')
    body = ''.join(_section(f) for f in verdict.findings)
    if verdict.losses: body += _picture(verdict, out)
    if verdict.said: body += '<h2>What it says</h2>' + _answers(verdict.said)
    body += f"<h2>Looked at</h2><p>{escape('; '.join(verdict.looked))}"
    body += ''.join(f'<p>Not looked at: {escape(x)}' for x in verdict.left)
    page = html_page('The doctor', verdict.verdict, body, verdict.healthy, 'img{max-width:100%} td{padding:.2em 1em}')
    with atomic_path(out/'doctor.html') as p: p.write_text(page, encoding='utf-8')
    return out/'doctor.html'

def _section(f):
    "A finding on the page."
    since = f', since step {f.since}' if f.since else ''
    return (f'<h2>{escape(f.name)}</h2><p>{escape(f.says)} ({escape(f.how_sure)}{since}).'
            f'<p><b>Next:</b> {escape(f.do)}.')

def _picture(verdict, out):
    "losses.png, also inside of the page."
    import matplotlib.pyplot as plt
    fig, b = plot_course(verdict), io.BytesIO()
    fig.savefig(b, format='png', dpi=110, metadata={'Software':None})
    plt.close(fig)
    with atomic_path(out/'losses.png') as p: p.write_bytes(b.getvalue())
    data = base64.b64encode(b.getvalue()).decode()
    return f'<h2>Course</h2><img alt="loss and gradient norm" src="data:image/png;base64,{data}">'

def _answers(said):
    "The answers as a table."
    rows = ''.join(f'<tr><td>{escape(q)}<td>{escape(a)}<td>{escape(b)}' for q,a,b in said.table())
    return f'<table><tr><th>question<th>with a picture<th>without{rows}</table>'