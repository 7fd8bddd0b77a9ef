import contextlib, hashlib, importlib.util, json, os, re, shlex, signal, subprocess, sys, time
from dataclasses import dataclass, field
from functools import cache
from glob import escape as escape_glob
from itertools import islice, product
from pathlib import Path
from typing import Any, Callable

from aligngpt import __version__
from aligngpt.core.errors import AlignGPTError, local_path
from aligngpt.core.files import CARD, atomic_path, fingerprint, own_folder, path_from, read_json, write_json
from aligngpt.core.markup import Table, html_page, markdown_html
from aligngpt.core.steps import TIMING, note_time, noted
from aligngpt.core.values import check_name
from aligngpt.training.guess import count_records, guess_stage, read_sizes
from aligngpt.training.settings import read_yaml

@dataclass(frozen=True)
class Command:
    "A command that can be a stage."
    name:str # as on the line
    keys:tuple[str,...] # its options, with `_` for `-`
    out:str # the key that names what it leaves; '' if it leaves nothing
    read:Callable # {key: value} -> the values as the command reads them; `AlignGPTError` where it would refuse
    words:Callable # {key: value} -> the words of its line
    guess:Callable|None=None # {key: value} -> a `Guess`, where the command has an own way to one

_IMPLIED = dict(select=dict(data=('levels.out',)),
                audit=dict(data=('select.out', 'levels.out'), images=('levels.images',)),
                pretrain=dict(data=('select.out', 'levels.out'), images=('levels.images',)),
                finetune=dict(model=('pretrain.out',))) # command -> key -> whose value, the first that is there
_RUN = dict(run=('finetune.out', 'pretrain.out')) # of every command that takes a model to use
_FILES = dict(levels='levels.json', select='chosen.jsonl') # what a command leaves, if that is no folder
_PART = dict(levels='levels', select='levels', audit='data', unpack='data', pretrain='training', finetune='training',
             eval='evaluation', score='evaluation') # the last part of the package that a command is made of
_PARTS = ('core', 'text', 'model', 'data', 'levels', 'checkpoints', 'training', 'evaluation', 'chat', 'serving',
          'quickstart')
_FREE = ('quiet', 'features', 'workers', 'watch', 'trackers', 'keep', 'save_every', 'show', 'yes', 'judge_jobs',
         'judge_retries',
         'judge_timeout') # keys that change no result
_MUST = 'data', 'images', 'scores', 'ids', 'without', 'captions', 'against', 'predictions', 'replies' # keys whose paths must be there
_PATHS = *_MUST, 'folder', 'files', 'clip', 'llm', 'tower', 'model', 'run', 'processor', 'valid', 'src', 'drawings'
_CACHE = 'features', # keys of folders that fill by themselves, and change no result
_SHARED = 'pretrain', 'finetune', 'eval' # commands before which the file's own launcher stands
_TOP = 'out', 'launcher', 'plain' # keys of the file that are no stage
_OWN_KEYS = 'command', 'launcher', 'variants', 'matrix' # keys of a stage that are no options

def read_experiment(
    path:str|Path, # YAML
    sets:tuple[str,...]=(), # changes, as in 'finetune.learning_rate=1e-4'
)->dict: # what it says
    "Read an experiment."
    said = read_yaml(path)
    for text in sets: _set(said, text)
    for name, spec in said.items():
        if name not in _TOP and not isinstance(spec, dict) and spec is not None:
            raise AlignGPTError(f'{path}: {name} is {spec!r}; a stage has keys of its own',
                                f'write {name}: {{key: value}}')
    return {k:_plain_keys(v) if isinstance(v, dict) else v for k,v in said.items()}

def _plain_keys(spec): return {str(k).replace('-', '_'):v for k,v in spec.items()}

def _set(said, text):
    "Change one value."
    import yaml
    place, sign, value = text.partition('=')
    known = [k for k in (*said, *_TOP) if place == k or place.startswith(f'{k}.')]
    if not known: check_name(place.split('.')[0], dict.fromkeys([*said, *_TOP]), f'--set {text}: no stage')
    name = max(known, key=len)
    *way, last = [name, *filter(None, place[len(name):].replace('-', '_').split('.'))]
    if not sign or bool(way) == (name in _TOP):
        raise AlignGPTError(f'--set {text}: not understood', 'as in --set finetune.learning_rate=1e-4')
    node = said
    for k in way: node[k] = node = dict(node.get(k) or {})
    node[last] = yaml.safe_load(value)

_REF = re.compile(r'\$\{\s*([\w.-]+)\.([\w-]+)\s*\}')

def _refs(v):
    "The stages that a value speaks of."
    if isinstance(v, str): return {name for name,_ in _REF.findall(v)}
    parts = v.values() if isinstance(v, dict) else v if isinstance(v, (list, tuple)) else ()
    return set().union(*map(_refs, parts))

def _variants(spec):
    "Name -> changes; a single one without a name where there are none."
    named, grid = _names_of('variants', spec) or {'':{}}, _names_of('matrix', spec)
    lists = [v if isinstance(v, list) else [v] for v in grid.values()]
    def tag(name, values): return [str(name)]*bool(name) + [f'{k}-{v}' for k,v in zip(grid, values)]
    return {re.sub(r'[^\w.-]+', '-', '.'.join(tag(name, values))):
            {**_plain_keys(changes or {}), **_plain_keys(dict(zip(grid, values)))}
            for name,changes in named.items() for values in product(*lists)}

_AS = dict(variants='as in variants: {low: {learning_rate: 1e-5}, high: {learning_rate: 1e-4}}',
           matrix='as in matrix: {seed: [0, 1, 2]}')

def _names_of(key, spec):
    "The table of variants or of a matrix."
    found = spec.get(key) or {}
    inner = found.values() if isinstance(found, dict) and key == 'variants' else ()
    if isinstance(found, dict) and all(isinstance(v or {}, dict) for v in inner): return found
    raise AlignGPTError(f'{key}: got {found!r}', _AS[key])

def _imply(name, command, options, specs):
    "Options with what the stages before leave."
    out = dict(options)
    for key, sources in {**(_RUN if 'run' in command.keys else {}), **_IMPLIED.get(command.name, {})}.items():
        here = [s for s in sources if (n := s.split('.')[0]) in specs and n != name
                and (s.endswith('.out') or 'images' in specs[n])]
        if key not in options and here: out[key] = f'${{{here[0]}}}'
    return {k:v for k,v in out.items() if v is not None}

@dataclass
class Stage:
    "One stage to be made: a command with its options."
    name:str # in the file, with the names of its variants
    command:Command # of the line
    options:dict # key -> value, which may speak of other stages
    launcher:str='' # words before the command, such as 'torchrun --nproc_per_node 8'
    axes:dict=field(default_factory=dict) # stage of the file -> the variant that this is, or is made after
    refs:dict=field(default_factory=dict) # name in the options -> the `Stage` that is meant

def stages_of(
    said:dict, # from `read_experiment`
    commands:dict[str,Command], # all there are
    file:str|Path='', # named in errors
)->list[Stage]: # in an order in which they can be made
    "The stages of an experiment."
    specs = {k:v or {} for k,v in said.items() if k not in _TOP}
    done, todo = {}, dict(specs)
    while todo:
        ready = [n for n in todo if not _speaks_of(n, specs, commands, file) & todo.keys()]
        if not ready: raise AlignGPTError(f'{file}: {", ".join(todo)}: each waits for another, or for itself',
                                          'break the circle; key: null takes nothing from before')
        for n in ready:
            done[n] = _instances(n, todo.pop(n), specs, done, commands[specs[n].get('command', n)], said)
    return [s for stages in done.values() for s in stages]

def _speaks_of(name, spec_of, commands, file):
    "The stages that one needs; what is unknown is an error."
    spec = spec_of[name]
    check_name(spec.get('command', name), commands, f'{file}: {name}: no command')
    command = commands[spec.get('command', name)]
    if not command.out: raise AlignGPTError(f'{file}: {name}: `{command.name}` leaves nothing, and is no stage')
    used = [_imply(name, command, {**_options(spec), **changes}, spec_of) for changes in _variants(spec).values()]
    for options in used:
        for k in options: check_name(k, command.keys, f'{file}: {name}: unknown key')
    for other in _refs(used): check_name(other, spec_of, f'{file}: {name}: no stage')
    return _refs(used)

def _options(spec): return {k:v for k,v in spec.items() if k not in _OWN_KEYS}

def _instances(name, spec, specs, done, command, said):
    "A stage of the file as one or more: for each of its variants, and of those that it is made after."
    out, launcher = [], spec.get('launcher', said.get('launcher') if command.name in _SHARED else '') or ''
    for tag, changes in _variants(spec).items():
        options = _imply(name, command, {**_options(spec), **changes}, specs)
        names = sorted(_refs(options))
        for chosen in product(*(done[n] for n in names)):
            axes = [(k, v) for s in chosen for k,v in s.axes.items()]
            if len(dict(axes)) < len(set(axes)): continue # two variants of one stage
            own = dict(axes) | ({name:tag} if tag else {})
            out.append(Stage('.'.join([name, *own.values()]), command, options, launcher, own,
                             dict(zip(names, chosen))))
    return out

def _listing(folder, but=(), few=200, most=20_000):
    "A folder in some letters."
    def files(d):
        for e in sorted(os.scandir(d), key=lambda e: e.name):
            if e.name.startswith('.') or e.name.endswith('.index') or os.path.abspath(e.path) in but:
                continue # caches
            if e.is_dir(): yield from files(e.path)
            elif e.name not in (CARD, TIMING): yield Path(e.path)
    found = list(islice(files(folder), most))
    if len(found) <= few: return fingerprint(*found)
    rows = [(f.relative_to(folder).as_posix(), f.stat().st_size) for f in found]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

def _print_of(path, but=()): return _listing(path, but) if path.is_dir() else fingerprint(path)

def _code(command):
    "The code that a command is made of, in some letters."
    parts, h = _PARTS[:_PARTS.index(_PART.get(command, _PARTS[-1])) + 1], hashlib.sha256(__version__.encode())
    for f in sorted(f for p in parts for f in (_package()/p).rglob('*.py')):
        if f.name != 'experiment.py': h.update(f.read_bytes()) # which makes nothing itself
    return h.hexdigest()[:12]

def _package(): return Path(importlib.util.find_spec('aligngpt').origin).parent

@dataclass
class Job:
    "A stage with its values, its key and its folder."
    stage:Stage # what is to be made
    at:Any # where paths go from
    values:dict # key -> value, as the command gets it
    identity:dict # all that the result depends on
    key:str # the same in eight letters
    folder:Path # of the results
    state:str='' # 'done', 'goes on', or 'runs'
    why:str='' # for a person

    @property
    def name(self)->str: return self.stage.name

    @property
    def out(self)->Path: # file or folder that it leaves
        "What later stages take."
        return self.at.base/self.values[self.stage.command.out]

    def value(self, key:str)->Any: # of an option, for other stages
        "The value that `${stage.key}` means."
        if key == 'out': return self.values[self.stage.command.out]
        check_name(key, self.values, f'{self.name}: says nothing about')
        return self.values[key]

def _filled(v, jobs):
    "A value with those of other stages in their places."
    if isinstance(v, (list, tuple)): return [_filled(x, jobs) for x in v]
    if isinstance(v, dict): return {k:_filled(x, jobs) for k,x in v.items()}
    if not isinstance(v, str): return v
    def one(m): return jobs[m[1]].value(m[2].replace('-', '_'))
    whole = _REF.fullmatch(v.strip())
    return one(whole) if whole else _REF.sub(lambda m: str(one(m)), v)

def _identified(k, v, jobs, at):
    "A value as the key has it: stages by their keys, paths by their content."
    if isinstance(v, (list, tuple)): return [_identified(k, x, jobs, at) for x in v]
    if isinstance(v, dict): return {n:_identified(k, x, jobs, at) for n,x in v.items()}
    if not isinstance(v, str): return v
    if found := _REF.search(v):
        job = jobs[found[1]]
        if found[2] == 'out': return dict(made=f'{job.name} {job.key}', rest=_REF.sub('', v))
        return _identified(k, _filled(v, jobs), jobs, at)
    return dict(content=at.print_of(p)) if (p := at.path(k, v)) else v

class _At:
    "Paths of a file, from its folder; each is looked at once."
    def __init__(self, base, out, file, plain=False): # results and the file itself are no content of a folder
        self.base, self.out, self.plain, but = base, out, plain, {os.path.abspath(p) for p in (out, file)}
        self.print_of = cache(lambda p: _print_of(p, but))

    def path(self, key, text):
        "The path that a word means, if there is one; a bare word is one only where paths are expected."
        if key not in _PATHS and not re.search(r'[./\\~]', text) or not 0 < len(text) < 1000: return None
        p = self.base/os.path.expanduser(text)
        return p if p.exists() else None

def _holds_path(v): return isinstance(v, dict) and ('made' in v or 'content' in v) or (
    isinstance(v, (list, dict)) and any(map(_holds_path, v.values() if isinstance(v, dict) else v)))

def _job(stage, jobs, at, file):
    "Find out what a stage depends on."
    command, given = stage.command, {k:v for k,v in stage.options.items() if k != stage.command.out}
    jobs = {name:jobs[s.name] for name,s in stage.refs.items()}
    values = {k:_filled(v, jobs) for k,v in given.items()}
    for k in _MUST: _must_be_there(k, values.get(k), at.base, jobs, f'{file}: {stage.name}')
    try: read = command.read({**values, command.out:'x'})
    except AlignGPTError as e: raise AlignGPTError(f'{file}: {stage.name}: {e.message}', e.hint) from e
    marked = {k:_identified(k, v, jobs, at) for k,v in given.items()}
    told = {k:v if _holds_path(v) else read.get(k, v) for k,v in marked.items() if k not in _FREE}
    said = dict(command=command.name, options=told, launcher=stage.launcher, leaves=_leaves(stage, file),
                code=_code(command.name))
    identity = json.loads(json.dumps(said, default=str, sort_keys=True))
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return Job(stage, at, values, identity, key, at.out/f'{stage.name}-{key}')

def _leaves(stage, file=''):
    "The name of a result in its folder; '' if it is the folder."
    inside = stage.options.get(stage.command.out) or _FILES.get(stage.command.name, '')
    if Path(inside).name == inside: return inside
    raise AlignGPTError(f'{file}: {stage.name}: {stage.command.out}: {inside!r} is no name inside of its folder',
                        'leave it out: the folder is made in that of the experiment')

def _must_be_there(key, v, base, jobs, where):
    "Data are missed before anything runs, except for those that are still to be made."
    made = [str(j.folder) for j in jobs.values()]
    for p in v if isinstance(v, list) else [v]:
        if not isinstance(p, str) or '://' in p or (base/os.path.expanduser(p)).exists(): continue
        if not any(os.path.abspath(base/p).startswith(os.path.abspath(m)) for m in made):
            raise AlignGPTError(f'{where}: {key}: {p}: no such file or folder', f'paths go from {base or "."}')

_MADE, _FILE = 'made.json', 'experiment.yaml' # of a stage's folder: what it is, and the file that makes it again

def _look(job, any_code):
    "Find the folder of a job, what is to be done, and why."
    job.folder = any_code and _same_but_code(job) or _plain_folder(job) or job.folder
    job.values[job.stage.command.out] = path_from(job.at.base, job.folder/_leaves(job.stage))
    made = _made(job.folder)
    job.key = made['key'] if made else job.key
    job.state = 'runs' if made is None else 'done' if made['done'] else 'goes on'
    job.why = 'unchanged' if job.state == 'done' else 'interrupted' if made else _changes(job)
    if job.state == 'done': _check_files(job.folder, made['files'])

def _check_files(folder, files):
    "What was made must be there."
    for name, size in files.items():
        f = folder/name
        if not f.exists() or f.stat().st_size != size:
            raise AlignGPTError(f'{folder}: {name} is not what was made', 'restore it, or remove the folder')

def _made(folder):
    "What a folder says that it is, if it is of a stage."
    return dict(key=folder.name[-8:]) | read_json(folder/_MADE) if (folder/_MADE).exists() else None

def _others(job):
    "What is known of a stage: its folders with what they say, newest first."
    named, out = escape_glob(job.name), job.at.out
    found = [*out.glob(f'{named}-{"[0-9a-f]"*8}/{_MADE}'), *out.glob(f'{named}/{_MADE}')]
    return [(p.parent, _made(p.parent)) for p in sorted(found, key=lambda p: -p.stat().st_mtime)]

def _same_but_code(job):
    "A folder that differs in the code alone: a finished one, before one that would go on."
    def but(identity): return {k:v for k,v in identity.items() if k != 'code'}
    same = [(not made['done'], f) for f,made in _others(job) if but(made['identity']) == but(job.identity)]
    return min(same, key=lambda s: s[0])[1] if same else None

def _plain_folder(job):
    "The folder without a key, where the file wants such, unless it holds other results."
    folder = job.at.out/job.name
    return folder if job.at.plain and (_made(folder) or dict(key=job.key))['key'] == job.key else None

def _changes(job):
    "What is other than last time."
    if not (known := _others(job)): return 'new'
    old, now = known[0][1]['identity'], job.identity
    keys = [k for k in {**old['options'], **now['options']} if old['options'].get(k) != now['options'].get(k)]
    told = [_change(k, old['options'].get(k), now['options'].get(k)) for k in keys]
    return '; '.join(told + [k for k in ('command', 'launcher', 'leaves', 'code')
                             if old.get(k) != now[k]]) or 'another'

def _change(key, was, now):
    "A change in words."
    if isinstance(now, dict) and 'made' in now: return f'{key}: {now["made"].split()[0]} is another'
    if _holds_path(now) or _holds_path(was): return f'{key}: its content'
    return f'{key}: {"none" if was is None else was} -> {"none" if now is None else now}'

@dataclass(repr=False)
class Experiment:
    "The jobs of a file, in order."
    file:Path # that says it
    out:Path # folder of all results
    jobs:list[Job] # those that were asked for
    known:list[Job] # all

    def rows(self)->list[tuple]: # of what is shown
        "What would run, and why, how long and how large."
        past = {r['step']:r for r in noted(self.out) if 'step' in r}
        return [(j.name, j.state, j.why, *_figures(past.get(j.name), j, self.known),
                 path_from(self.file.parent, j.folder)) for j in self.jobs]

    def table(self)->Table: return Table(self.rows(), ('stage', '', 'why', 'time', 'size', 'folder'))
    def _repr_markdown_(self): return self.table()._repr_markdown_()
    def __repr__(self): return str(self.table())

def _figures(row, job, jobs):
    "How long and how large it was last time, and may be again; else a guess."
    if not row:
        return guess.words() if (guess := _guess(job, jobs)) else ('unknown', 'unknown')
    s, mb = row['seconds'], row['bytes']/1e6
    time_ = f'{s/3600:.1f} h' if s >= 3600 else f'{s/60:.0f} min' if s >= 120 else f'{s:.0f} s'
    return 'about '*(job.state != 'done') + time_, f'{mb:,.0f} MB' if mb >= 10 else f'{mb:.1f} MB'

def plan_experiment(
    file:str|Path, # YAML
    commands:dict[str,Command], # all there are
    sets:tuple[str,...]=(), # changes, as for `read_experiment`
    only:str='', # a stage: it, and what it needs
    any_code:bool=False, # results of another version of the program count as well
)->Experiment: # nothing has run
    "Find out what would run."
    file, said, jobs = Path(file), read_experiment(file, sets), {}
    out = file.parent/os.path.expanduser(local_path(str(said.get('out') or f'runs/{file.stem}')))
    at, stages = _At(file.parent, out, file, said.get('plain')), stages_of(said, commands, file)
    if not stages: raise AlignGPTError(f'{file}: no stages', 'see `aligngpt run --example`')
    for s in stages:
        jobs[s.name] = _job(s, jobs, at, file)
        _look(jobs[s.name], any_code)
    every = [*jobs.values()]
    return Experiment(file, out, _needed(only, stages, jobs, file) if only else every, every)

def _needed(only, stages, jobs, file):
    "A stage of that name, its variants, and all that they need."
    if not any(only in (s.name, s.name.split('.')[0]) for s in stages):
        check_name(only, list(dict.fromkeys(n for s in stages for n in (s.name.split('.')[0], s.name))),
                   f'{file}: no stage')
    want, todo = set(), [s for s in stages if only in (s.name, s.name.split('.')[0])]
    while todo: s = todo.pop(); want.add(s.name); todo += s.refs.values()
    return [j for n,j in jobs.items() if n in want]

def _guess(job, jobs):
    "How long and how large a stage may be."
    command = job.stage.command
    if command.guess: return command.guess(job.values)
    return guess_stage(command.name, job.values, _records(job, jobs), _sizes_of(job, jobs), job.stage.launcher,
                       job.at.base)

def _records(job, jobs):
    "How many records a stage reads, about."
    if job.stage.command.guess: return job.stage.command.guess(job.values).records
    data = job.values.get('data')
    counts = [_records_at(job.at.base/os.path.expanduser(str(d)), job, jobs)
              for d in (data if isinstance(data, list) else [data] if data else [])]
    return sum(counts) if counts and None not in counts else None

def _records_at(path, job, jobs):
    "Those of a file that is there, or of what will be made from others."
    if path.exists(): return count_records(path)
    maker = next((j for j in _before(job, jobs) if j.folder in (path, *path.parents)), None)
    return _records(maker, jobs) if maker else None

def _before(job, jobs):
    names = {s.name for s in job.stage.refs.values()}
    return [j for j in jobs if j.name in names]

def _sizes_of(job, jobs):
    "How large the model of a stage is, by itself or by the stage that makes it."
    guess = job.stage.command.guess
    own = guess(job.values).sizes if guess else read_sizes(job.values, job.at.base)
    return own or next((s for j in _before(job, jobs) if (s := _sizes_of(j, jobs))), None)

class StageFailed(AlignGPTError):
    "A stage did not end well; `code` is its exit code."
    def __init__(self,
        message:str, # which stage
        hint:str='', # what to do
        code:int=1, # of the process
    ):
        super().__init__(message, hint)
        self.code = code

def run_child(
    words:list[str], # a program and its arguments
    cwd:Path, # where it runs
    keep:tuple[int,...]=(), # open files that it keeps open
)->int: # its exit code; 128 plus the signal's number where one ended it
    "Run a process; signals are its own affair, and reach it through us."
    child = subprocess.Popen([str(w) for w in words], cwd=cwd, env=_environment(), pass_fds=keep)
    def pass_on(number, frame):
        if number != signal.SIGINT or not sys.stdin.isatty(): child.send_signal(number) # a terminal tells both
    heard = {s:signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try: code = child.wait()
    finally:
        for s,h in heard.items(): signal.signal(s, h)
    return 128 - code if code < 0 else code

def _environment():
    "With this package and this Python's programs, wherever the child runs."
    ours, bin_ = str(_package().resolve().parent), str(Path(sys.executable).parent)
    def before(first, name): return os.pathsep.join(filter(None, [first, os.environ.get(name)]))
    return dict(os.environ, PATH=before(bin_, 'PATH'),
                **({} if ours.endswith('-packages') else dict(PYTHONPATH=before(ours, 'PYTHONPATH'))))

def _again(job, file):
    "The experiment that makes one job, and what it needs, with paths from its folder."
    import yaml
    todo, found = [job.stage], {}
    while todo: s = todo.pop(); found[s.name] = s; todo += s.refs.values()
    said = {s.name:dict(command=s.command.name, **({'launcher':s.launcher} if s.launcher else {}),
                        **{k:_moved(k, v, s, job) for k,v in s.options.items()}) for s in reversed(found.values())}
    top = dict(out='..', **({'plain':True} if job.at.plain else {}))
    head = f'# Made from {file.name} by aligngpt {__version__}: `aligngpt run` finds this done, or makes it again.\n'
    with atomic_path(job.folder/_FILE) as p:
        p.write_text(head + yaml.safe_dump({**top, **said}, sort_keys=False, allow_unicode=True))

def _moved(k, v, stage, job):
    "A value as the file in a job's folder has it."
    if isinstance(v, list): return [_moved(k, x, stage, job) for x in v]
    if not isinstance(v, str): return v
    if _REF.search(v): return _REF.sub(lambda m: '${' + f'{stage.refs[m[1]].name}.{m[2]}' + '}', v)
    p = job.at.base/v if k in _CACHE else job.at.path(k, v)
    return path_from(job.folder, p) if p else v

def _run_job(job, file, program, tell, child):
    "Make one, and note that it is done."
    job.folder.mkdir(parents=True, exist_ok=True)
    _again(job, file)
    if not (job.folder/_MADE).exists(): _note(job, done=False)
    line = [*(shlex.split(job.stage.launcher) or [sys.executable]), *program, job.stage.command.name,
            *job.stage.command.words(job.values)]
    with _alone(job, tell) as held: since, code = time.time(), child(line, job.at.base, held)
    if code: raise StageFailed(*_said_of(job.name, code), code)
    if not job.out.exists(): raise StageFailed(f'{job.name}: ended, and {job.out} is not there')
    size = sum(f.stat().st_size for f in job.folder.rglob('*') if f.is_file())
    note_time(job.at.out, step=job.name, key=job.key, seconds=round(time.time() - since, 1), bytes=size)
    _note(job, done=True, files=_sizes(job.folder))

def _note(job, **what):
    "Write down what a folder is."
    write_json(dict(key=job.key, identity=job.identity, **what), job.folder/_MADE)

def _said_of(name, code):
    "An error and a hint for an exit code."
    if code > 128: return f'{name}: stopped', 'the same command goes on there'
    return f'{name}: failed with exit code {code}', 'what it said stands above; the same command goes on there'

@contextlib.contextmanager
def _alone(job, tell):
    "Hold a folder for us and for the child, which goes on holding it when we are killed; who comes next waits."
    import fcntl
    with open(job.folder/'.running', 'w') as f:
        try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f'{job.name}: a process still works in {job.folder}; waiting for it')
            fcntl.flock(f, fcntl.LOCK_EX)
        yield (f.fileno(),)

def _sizes(folder):
    "What a stage left, but for what may change."
    def free(part): return part.startswith(('.', 'checkpoint-')) or part.endswith('.index') # which people may remove
    return {f.relative_to(folder).as_posix():f.stat().st_size for f in sorted(folder.rglob('*'))
            if f.is_file() and f.name not in (CARD, TIMING, _MADE, _FILE)
            and not any(map(free, f.relative_to(folder).parts))}

def run_experiment(
    file:str|Path, # YAML
    commands:dict[str,Command], # all there are
    program:tuple=('-m', 'aligngpt.cli'), # of the commands, for Python or a launcher
    tell:Callable=print, # told what goes on
    child:Callable=run_child, # what runs a line
    **how:Any, # of `plan_experiment`
)->Experiment: # all is done
    "Make what is not made yet."
    plan = plan_experiment(file, commands, **how)
    with own_folder(plan.out):
        for n, job in enumerate(plan.jobs, 1):
            tell(f'[{n}/{len(plan.jobs)}] {job.name}: {job.why}')
            if job.state != 'done': _run_job(job, plan.file, program, tell, child)
            _look(job, how.get('any_code', False))
        write_experiment(plan)
    return plan

def _outcome(job):
    "What is known of a result, in words."
    found = {p.parent.name:read_json(p).get('headline') for p in sorted(job.out.glob('*/score.json'))}
    done = read_json(job.out/'done.json') if (job.out/'done.json').exists() else {}
    loss = {'last loss':done['losses'][-1]} if done.get('losses') else {}
    return ', '.join(f'{k} {v:,.4g}' if isinstance(v, (int, float)) else f'{k} {v}'
                     for k,v in {**loss, **found}.items())

def write_experiment(
    plan:Experiment, # that is done
)->Path: # report.html; report.md lies beside it
    "Write what came out."
    def own(j): return ', '.join(f'{k} {v}' for k,v in j.values.items()
                                 if isinstance(v, (int, float, str)) and k != j.stage.command.out
                                 and not j.at.path(k, str(v)))
    rows = [(j.name, _outcome(j), own(j), path_from(plan.out, j.folder)) for j in plan.known if j.state == 'done']
    text = Table(rows, ('stage', 'what came out', 'settings', 'folder'))._repr_markdown_()
    for name, what in (('report.md', f'# {plan.file.stem}\n\n{text}\n'),
                       ('report.html', html_page(plan.file.stem, f'{len(rows)} stages', markdown_html(text)))):
        with atomic_path(plan.out/name) as p: p.write_text(what, encoding='utf-8')
    return plan.out/'report.html'