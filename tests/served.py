"""A server in a process of its own, for the tests of serving: `aligngpt serve` as a user starts it, or the toy
with a brake."""
import os, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

root = Path(__file__).resolve().parent.parent
BRAKED = """
import os, sys, tempfile, time, pathlib
os.environ.update(GRADIO_ANALYTICS_ENABLED='False', GRADIO_TEMP_DIR=tempfile.mkdtemp(dir='.'))
from aligngpt.chat.session import ChatSession
from aligngpt.cli.serve import _run, build_app, listen, own_names
from aligngpt.serving.remote import Limits
from aligngpt.model.toy import toy
hold, abroad, sock = pathlib.Path('hold'), open('abroad', 'w'), listen('127.0.0.1', 0)
def watch(event, args): # whom this process asks for anything
    if event not in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'): return
    if not any(s in str(args) for s in ('127.0.0.1', 'localhost')): print(event, args, file=abroad, flush=True)
sys.addaudithook(watch)
app = build_app(ChatSession(*toy()), 'toy', None, Limits(), own_names('127.0.0.1'), True, dict(temperature=0), {})
engine = app.state.api.engine
def brake(*args): # an answer stays at its third token while the file is there
    while hold.exists() and any(j.answer.tokens >= 3 and j.state != 'done' for j in engine.jobs): time.sleep(.02)
engine.model.language_model.register_forward_pre_hook(brake)
class Repeats:
    "A job whose answer is other words, which a test names."
    def __init__(self, job): self.job, self.answer = job, job.answer
    async def __aiter__(self):
        async for _ in self.job: pass
        yield os.environ['ALIGNGPT_SAYS']
if 'ALIGNGPT_SAYS' in os.environ: submit = engine.submit; engine.submit = lambda asked: Repeats(submit(asked))
print(f'toy: API http://127.0.0.1:{sock.getsockname()[1]}/v1, page', flush=True)
_run(app, sock, 5)
"""


def save_runs(folder):
    "Runs to serve: `toy`, which answers, and `babbler`, the toy before its training, which has no end to what it says."
    from aligngpt.model.toy import toy, toy_model
    model, processor = toy()
    for name,m in dict(toy=model, babbler=toy_model(processor)).items():
        for part in (m, processor): part.save_pretrained(folder/name/'model')


class Server:
    "A process that serves."
    def __init__(self, process, log, url): self.process, self.log, self.url = process, log, url

    @property
    def memory(self): # MB
        "What it holds in memory."
        line = next(l for l in Path(f'/proc/{self.process.pid}/status').read_text().splitlines()
                    if l.startswith('VmRSS'))
        return int(line.split()[1])/1024


@contextmanager
def serve(folder, *arguments, env={}):
    "Run `aligngpt serve` with `arguments` in `folder`, or the braked toy without any; yields a `Server`."
    free = () if '--port' in arguments else ('--port', '0')
    command = ['-m', 'aligngpt.cli', 'serve', *arguments, *free] if arguments else ['-c', BRAKED]
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', **env)
    with tempfile.NamedTemporaryFile('w', dir=folder, suffix='.log', delete=False) as log:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=subprocess.PIPE,
                                   stderr=log, text=True)
        try:
            hello = process.stdout.readline()
            assert 'API http' in hello, Path(log.name).read_text()[-3000:]
            yield Server(process, Path(log.name), hello.split('API ')[1].split('/v1')[0])
        finally:
            process.terminate()
            try: process.wait(20)
            except subprocess.TimeoutExpired: process.kill(); process.wait()
            process.stdout.close()


def until(f, seconds=300):
    "Wait for something; the seconds it took."
    start = time.perf_counter()
    while not f(): assert time.perf_counter() - start < seconds, 'waited in vain'; time.sleep(.002)
    return time.perf_counter() - start
