"""`aligngpt quickstart --rehearse`, stopped with Ctrl-C in the middle of each of its steps and started again, in
one process.

    python tests/interrupted.py FOLDER RESULT

RESULT becomes a JSON file: for each start the place of the Ctrl-C, the exit code, and what it said. During the
first one
a second command tries its luck with the same folder.
"""
import contextlib, importlib, io, itertools, json, os, signal, subprocess, sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook

from aligngpt.cli.main import main

quickstart = importlib.import_module('aligngpt.quickstart.run')
scoring = importlib.import_module('aligngpt.levels.scoring')
asking = importlib.import_module('aligngpt.evaluation.results')
run, result = map(Path, sys.argv[1:])
ARGUMENTS = ['quickstart', '--rehearse', '--out', str(run)]


def ctrl_c(): os.kill(os.getpid(), signal.SIGINT)

@contextlib.contextmanager
def replaced(name, wrap, table):
    "`wrap` stands for a function of a table; it gets the function and a call's arguments."
    f = table[name]
    table[name] = lambda *args, **kwargs: wrap(f, *args, **kwargs)
    try: yield
    finally: table[name] = f

def after(name, also=lambda: None, table=vars(quickstart)):
    "Ctrl-C when a function is done, and nobody knows yet."
    def wrap(f, *args, **kwargs):
        out = f(*args, **kwargs)
        also(); ctrl_c()
        return out
    return replaced(name, wrap, table)

def training(name, at=3, table=vars(quickstart)):
    "Ctrl-C in a step of the training that a function does."
    def wrap(f, *args, **kwargs):
        steps = itertools.count(1)
        hook = register_optimizer_step_post_hook(lambda *_: ctrl_c() if next(steps) == at else None)
        try: return f(*args, **kwargs)
        finally: hook.remove()
    return replaced(name, wrap, table)

def start(name, stop):
    "The command, with a Ctrl-C to come."
    out, err = io.StringIO(), io.StringIO()
    with stop, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(ARGUMENTS)
        except SystemExit as e: code = e.code
    return dict(name=name, code=code, err=err.getvalue(), finished=(run/'report'/'metrics.json').exists())

def second():
    "The same command in another process, meanwhile."
    done = subprocess.run([sys.executable, '-m', 'aligngpt.cli', *ARGUMENTS], capture_output=True, text=True)
    starts.append(dict(name='second', code=done.returncode, err=done.stderr))


signal.signal(signal.SIGINT,
              signal.default_int_handler) # pytest's workers are deaf to Ctrl-C, and so are their children
starts = []
steps = quickstart._DO # step -> what does it
stops = dict(data=after('train_tokenizer', second), clip=training('train_clip'),
             llm=training('train_llm'), scores=after('pair_of', table=vars(scoring)),
             pretrain=training('pretrain', table=steps), tune=training('finetune', table=steps),
             test=after('score_run', table=vars(asking)), report=after('plot_scores'), none=contextlib.nullcontext())
for name, stop in stops.items(): starts.append(start(name, stop))
result.write_text(json.dumps(starts))
