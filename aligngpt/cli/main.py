import contextlib, logging, os, sys, traceback, warnings
from pathlib import Path
from typing import Annotated, Optional

import typer, typer.core

from aligngpt import __version__
from aligngpt.core.errors import AlignGPTError, errno_of, local_path, of_the_system
from aligngpt.core.markup import echo, printable_logs
from aligngpt.core.shards import process_rank
from aligngpt.core.stores import check_outbox, check_stores
from aligngpt.core.versions import untested
from aligngpt.cli.ablate import register_ablate
from aligngpt.cli.data import DType, Device, register_data
from aligngpt.cli.doctor import register_doctor
from aligngpt.cli.evaluate import register_eval
from aligngpt.cli.experiment import Usage, register_experiment, run_quickstart
from aligngpt.cli.experiment import Usage, register_experiment
from aligngpt.cli.export import register_export
from aligngpt.cli.folders import register_folders
from aligngpt.cli.serve import register_label, register_serve
from aligngpt.cli.train import register

_FREE = dict(chat=('image', 'question'), eval=('judge',), score=('judge',), answer=('ask',),
             caption=('ask',), recaption=('ask',)) # options that take addresses, or words
_STORED = dict(levels=('data', 'images', 'out'), audit=('data', 'images', 'out'), show=('data', 'images'),
               pretrain=('data', 'images', 'valid'), finetune=('data', 'images', 'valid')) # those that take stores

class _OfThisMachine(typer.core.TyperCommand):
    "A command whose options are paths of this machine, before anything else happens."
    def invoke(self, ctx):
        "Run the command."
        ctx.params.update(self.checked(ctx.info_name, ctx.params))
        return super().invoke(ctx)

    def checked(self, name, params):
        "The options with paths of this machine, where no store is possible."
        free, stored = (table.get(name, ()) for table in (_FREE, _STORED))
        for k in stored: (check_outbox if k == 'out' else check_stores)(params[k])
        for k in stored: # the files among them
            for v in [params[k]] if isinstance(params[k], (str, Path)) else params[k] or ():
                if '://' not in str(v): local_path(v)
        return {k:v if k in stored or k in free else local_path(v) for k,v in params.items()}

class _Commands(typer.Typer):
    "Commands of that kind."
    def command(self, name=None, **how):
        "As Typer's."
        return super().command(name, cls=_OfThisMachine, **how)

app = _Commands(name='aligngpt', invoke_without_command=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings=dict(help_option_names=['-h', '--help'], max_content_width=120),
    help='AlignGPT: vision-language models with adaptive alignment. '
         'New here? `aligngpt quickstart` trains one in minutes, on a CPU.')

def _version(show:bool):
    if not show: return
    echo(f'aligngpt {__version__}')
    raise typer.Exit()

@app.callback()
def options(
    context:typer.Context,
    version:Annotated[bool, typer.Option('--version', callback=_version, is_eager=True,
                                         help='Show the version and exit.')]=False,
    debug:Annotated[bool, typer.Option('--debug',
                                       help='Show the traceback of an error. Works anywhere on the line.')]=False,
):
    "Options of all commands; without a command, what there is."
    if context.invoked_subcommand is None: typer.echo(context.get_help())

def _explain(e):
    "(text, hint, exit code) of an error."
    if isinstance(e, Usage): return e.format_message(), f'see `{e.ctx.command_path} --help`' if e.ctx else '', 2
    if isinstance(e, AlignGPTError): return e.message, e.hint, getattr(e, 'code', 1)
    if isinstance(e, MemoryError): return 'not enough memory', 'is a file much larger than it looks?', 1
    if errno_of(e): return _explain(of_the_system(e))
    return f'{type(e).__name__}: {e}', 'this should not happen; `--debug` shows the traceback', 1

def main(
    args:Optional[list[str]]=None, # command line without the program's name; default: the real one
)->None: # leaves through `sys.exit` with 0, 1, 2 or 130
    "Run a command line."
    args = [_at_home(a) for a in (sys.argv[1:] if args is None else args)]
    _prepare(args)
    line = dict(args=[a for a in args if a != '--debug'], prog_name='aligngpt', standalone_mode=False)
    try:
        _no_empty(args)
        with _notes('--debug' in args): code = app(**line) or 0
    except BrokenPipeError: code = _reader_left()
    except Exception as e:
        text, hint, code = _explain(e)
        if '--debug' in args and code == 1: echo(traceback.format_exc().rstrip(), err=True)
        else: echo(f'error: {text}' + (f'\n  hint: {hint}' if hint else ''), err=True)
    if code == 130: echo(_INTERRUPTED, err=True)
    sys.exit(code)

def _no_empty(args):
    "A value that says nothing is a variable that was never set, and `''` as a path would be this folder."
    for before, arg in zip(['', *args], args):
        if arg == '' or arg.startswith('--') and arg.endswith('='):
            raise AlignGPTError(f'{arg.rstrip("=") or before or "the first value"}: an empty value',
                                'is a variable of the shell not set? Leave out what has no value')

def _at_home(arg):
    "`~/` as the user's folder where no shell has put it: in quotes, or in --out=~/runs."
    option, _, value = arg.rpartition('=') if arg.startswith('--') else ('', '', arg)
    if not value.startswith('~/'): return arg
    return f'{option}='*bool(option) + os.path.expanduser(value)

_INTERRUPTED = 'interrupted; a command that keeps a folder goes on there when it is given again'

def _prepare(args):
    "Notes on releases that were not tried, once, and only where something will run."
    asks = not {'--help', '-h', '--version'}.isdisjoint(args)
    if args and not asks and process_rank()[0] == 0:
        for line in untested(): echo(f'note: {line}', err=True)
    logging.getLogger('bitsandbytes').setLevel(logging.ERROR) # it remarks on kernels of another package

@contextlib.contextmanager
def _notes(all_):
    "Our own warnings as notes, and none of other libraries, unless all are wanted; words in them command nothing."
    def tell(message, category, filename, lineno, file=None, line=None):
        if all_: echo(warnings.formatwarning(message, category, filename, lineno, line).rstrip(), err=True)
        elif Path(__file__).parents[1] in Path(filename).parents: echo(f'note: {message}', err=True)
    with warnings.catch_warnings(), printable_logs():
        warnings.showwarning = tell
        yield

def _reader_left():
    "The exit code when the reader of our output went away, as `head` does."
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0

@app.command('quickstart')
def quickstart_(
    out:Annotated[Optional[Path], typer.Option(help='Run folder; the same one continues a run. '
                                                    'Default: runs/quickstart or runs/drawings.')]=None,
    recipe:Annotated[str,
                     typer.Option(help="'shapes': from nothing, in minutes. 'drawings': real pictures and texts, a "
                                            'language model that can talk.')]='shapes',
    drawings:Annotated[Path,
                       typer.Option(help="For 'drawings': the folder of the Open Clip Art Library, with png and svg.")]
        =Path('/usr/share/openclipart'),
    ablate:Annotated[int, typer.Option(min=0,
                                       help="For 'drawings', after its run: train it in other ways, each with so many "
                                                   'seeds, and compare. Goes on where it was stopped.')]=0,
    seed:Annotated[int, typer.Option(help='Same seed, same numbers.')]=0,
    rehearse:Annotated[bool, typer.Option('--rehearse',
                                          help='All steps in a minute or two; little is learnt.')]=False,
):
    "Train a small AlignGPT on a CPU: levels, two stages, evaluation, report. Needs no download."
    from aligngpt.core.devices import pick_attention, quiet_libraries
    if recipe not in ('shapes', 'drawings'):
        raise typer.BadParameter(f'{recipe!r}. Valid: shapes, drawings', param_hint='--recipe')
    quiet_libraries()
    _tell(f'on the CPU, attention: {", ".join(pick_attention("cpu"))}')
    if recipe == 'shapes': echo(_shapes(out or Path('runs/quickstart'), seed, rehearse))
    else: echo(_drawings(out or Path('runs/drawings'), seed, rehearse, drawings, ablate))

def _tell(text): echo(text, err=True)

def _shapes(out, seed, rehearse):
    "Run the quickstart, and say what came out."
    import dataclasses
    from aligngpt.quickstart.stages import REHEARSAL, Recipe
    return _found(run_quickstart(app, out, dataclasses.replace(REHEARSAL if rehearse else Recipe(), seed=seed)), out)

def _drawings(out, seed, rehearse, folder, seeds):
    "Run the recipe of the drawings or its variants, and say what came out."
    import dataclasses
    from aligngpt.quickstart.variants import ablate, results_text
    from aligngpt.quickstart.words import WORDS_REHEARSAL, Ingredients, Words, run_drawings, words_text
    if seeds: return results_text(ablate(out, tuple(range(seeds)), Ingredients(folder), _tell))
    recipe = dataclasses.replace(WORDS_REHEARSAL if rehearse else Words(), seed=seed)
    return words_text(run_drawings(out, recipe, Ingredients(folder), _tell), out)

def _found(m, out):
    "What the quickstart has to say in the end."
    kinds = ', '.join(f'{k} {v:.2%}' for k,v in m['by_kind'].items())
    knob, tuned = (' '.join(f"{k}:{v['both']:.0%}" for k,v in m[name].items()) for name in ('knob', 'tuned'))
    ask = f"aligngpt chat {out} --image {min((out/'examples').glob('*.png'), default='PICTURE.png')}"
    return f"""accuracy on {m['questions']:,} test questions: {m['accuracy']:.2%}
  {kinds}
level and hidden degree of alignment: Spearman {m['spearman']:.3f}
captions with colour and shape right, by forced level:
  {knob}
the same after tuning, when "Describe the picture." is asked:
  {tuned}
report: {out/'report'/'report.html'}

now try
  {ask}
  {ask} --question 'Describe the picture.' --level 7
  ... and the same with --level 4, and 0{_more_ways(out)}"""

def _more_ways(out):
    "What else can be done with what is installed."
    from importlib.util import find_spec
    ways = dict(jupyterlab='notebook', uvicorn='serve')
    return ''.join(f'\n  aligngpt {command} {out}' for module, command in ways.items() if find_spec(module))

@app.command()
def chat(
    run:Annotated[str, typer.Argument(help='A run or checkpoint folder, ours or official, or a name on the hub.')],
    image:Annotated[Optional[list[str]], typer.Option(help='A picture file; may be given several times.')]=None,
    question:Annotated[Optional[str], typer.Option(help='Answer this and exit; may come through a pipe.')]=None,
    level:Annotated[Optional[int], typer.Option(help='Force an alignment level; by default the gate decides.')]=None,
    temperature:Annotated[float, typer.Option(min=0, help='0 always takes the likeliest token.')]=0.2,
    max_tokens:Annotated[int, typer.Option(min=1, help='Longest answer.')]=512,
    seed:Annotated[Optional[int], typer.Option(help='Of the sampling.')]=None,
    device:Device='auto', dtype:DType='auto',
):
    "Talk with a model about pictures, on the terminal or through a pipe."
    from aligngpt.core.devices import quiet_libraries
    from aligngpt.chat.session import open_session
    from aligngpt.chat.terminal import chat_terminal
    quiet_libraries()
    how = dict(alignment=level, temperature=temperature, max_new_tokens=max_tokens, seed=seed)
    chat_terminal(open_session(run, load=dict(device=device, dtype=dtype), **how), image or (), question)

@app.command()
def notebook(
    run:Annotated[str, typer.Argument(help='A run or checkpoint folder, ours or official, or a name on the hub.')],
    out:Annotated[Path, typer.Option(help='The notebook to write, unless it is there.')]=Path('chat.ipynb'),
    opened:Annotated[bool, typer.Option('--open/--no-open', help='Open it in JupyterLab.')]=True,
):
    "Write a notebook in which one can talk with a model, and open it."
    import importlib.util, subprocess
    from aligngpt.chat.widget import write_notebook
    if opened and importlib.util.find_spec('jupyterlab') is None:
        raise AlignGPTError('JupyterLab is not installed', "pip install 'aligngpt[notebook]', or --no-open")
    echo(write_notebook(run, out))
    if opened: sys.exit(subprocess.run([sys.executable, '-m', 'jupyterlab', str(out)]).returncode)

register_serve(app)
register_label(app)

register_data(app)

@app.command()
def convert(
    src:Annotated[str, typer.Argument(help='A checkpoint folder in any layout, or a name on the hub.')],
    dst:Annotated[Path, typer.Argument(help='The folder to make.')],
    to:Annotated[Optional[str], typer.Option(help="'hf' (ours), 'official' or 'align' (projector and levels alone); "
                                                  "default: the other layout.")]=None,
    llm:Annotated[Optional[str],
                  typer.Option(help='Language model, for a source of projector and levels only; base of an adapter of '
                                      "LLaVA's program, if not the one that it names.")]=None,
    tower:Annotated[Optional[str], typer.Option(help='Vision tower, if not the one that the source names.')]=None,
    template:Annotated[Optional[str], typer.Option(help='Conversation template, where the source names none.')]=None,
    fresh:Annotated[str,
                    typer.Option(help="Parts that the source lacks and that begin untrained, as in 'levels,gate' "
                                           "for a plain LLaVA.")]='',
):
    "Convert a checkpoint between the official layout and ours, shard by shard."
    from aligngpt.core.devices import quiet_libraries
    from aligngpt.core.values import read_value
    from aligngpt.checkpoints.convert import convert
    quiet_libraries()
    echo(convert(src, dst, to, llm=llm, tower=tower, template=template,
                 fresh=read_value(fresh, tuple[str,...], 'fresh')))

@app.command()
def zoo(
    name:Annotated[Optional[str], typer.Argument(help='A model of the table.')]=None,
):
    "Show the models by name; of one, its parts, sizes and training recipes as JSON."
    import dataclasses, json
    from aligngpt.training.settings import FINETUNE, PRETRAIN, fill_in
    from aligngpt.checkpoints.zoo import get_preset, zoo_table
    if name is None: echo(str(zoo_table())); return
    p = get_preset(name)
    def fields(o, *but): return {k:v for k,v in dataclasses.asdict(o).items() if k not in but}
    stages = {s.name:fields(fill_in(s, **p.stage(s.name)), 'name', 'said') for s in (PRETRAIN, FINETUNE)}
    echo(json.dumps({**fields(p, 'stage1', 'stage2'), **stages}, indent=2))

register(app)

register_eval(app)

register_folders(app)

register_experiment(app)
register_ablate(app)
register_doctor(app)

register_export(app)