"""What `push_to_hub` uploads, to a stand-in for the hub on this machine: a whole folder that opens, with a card that
says what it is; a card that somebody wrote stays."""
import base64, json, os, subprocess, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aligngpt.checkpoints.layouts import load
from aligngpt.model.sharing import is_ours

ROOT = Path(__file__).resolve().parents[2]


PROPOSAL = dict(title='', num=2, author=dict(name='me'), createdAt='2026-01-01T00:00:00.000Z', status='draft', diff='',
                isPullRequest=True, events=[], changes=dict(base='refs/heads/main'), filesWithConflicts=[],
                repo=dict(name='someone/bus', type='model'))


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as one commit needs; `server.files` is what is in the repository."
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def do_GET(self):
        if '/discussions/' in self.path: return self.answer(200, json.dumps(PROPOSAL).encode(), {})
        name = self.path.split('/resolve/main/')[-1]
        body = self.server.files.get(name)
        head = {'X-Error-Code':'EntryNotFound'} if body is None else {'ETag':'"1"', 'X-Repo-Commit':'c'*40}
        self.answer(404 if body is None else 200, body or b'', head)
    do_HEAD = do_GET

    def do_POST(self):
        raw = self.rfile.read(int(self.headers['Content-Length']))
        self.server.asked.append((self.path, self.headers['Authorization']))
        if 'create' in self.path: self.server.made.append(json.loads(raw))
        said = {'discussions':dict(num=2), 'create':dict(url=self.server.url + '/someone/bus'),
                'validate-yaml':dict(errors=[], warnings=[]),
                'commit':dict(success=True, commitOid='c'*40,
                              commitUrl=self.server.url + '/someone/bus/commit/' + 'c'*40,
                              pullRequestUrl=self.server.url + '/someone/bus/discussions/2')}
        what = next((k for k in said if f'/{k}' in self.path), None)
        if what == 'commit': self.take(raw)
        if what is None: # which way each file should come: all inside the commit
            said = dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False)
                               for f in json.loads(raw).get('files', [])])
        self.answer(200, json.dumps(said[what] if what else said).encode(), {'Content-Type':'application/json'})

    def take(self, raw):
        lines = [json.loads(l) for l in raw.splitlines()]
        files = {l['value']['path']:base64.b64decode(l['value']['content']) for l in lines[1:]}
        self.server.commits.append((lines[0]['value']['summary'], files))
        if 'create_pr' in self.path or '/main' not in self.path: return # main stays as it is
        self.server.files |= files

    def answer(self, code, body, head):
        self.send_response(code)
        for k,v in {**head, 'Content-Length':str(len(body))}.items(): self.send_header(k, v)
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.url, server.files, server.commits = f'http://127.0.0.1:{server.server_port}', {}, []
    server.asked, server.made = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PUSHES = """
from huggingface_hub import upload_file
from aligngpt.testing.fixtures import letter_processor, tiny_model
model, processor = tiny_model(vocab_size=99, side=32), letter_processor(template='v1')
model.config.history = [dict(step='language model', name='lmsys/vicuna-7b-v1.5', license='llama2')]
model.push_to_hub('someone/bus', processor=processor, scores={'POPE': ('F1', 86.1)}, tags=['buses'])
upload_file(path_or_fileobj=b'# My own card', path_in_repo='README.md', repo_id='someone/bus')
model.push_to_hub('someone/bus', processor=processor, code=False, commit_message='Again')
model.push_to_hub('someone/bus', create_pr=True, commit_message='Please', token='hf_of_me')
model.push_to_hub('someone/bus', revision='next')
"""


PARTS = """
from aligngpt.testing.fixtures import letter_processor, tiny_model
model, processor = tiny_model(vocab_size=99, side=32), letter_processor(template='v1')
model.save_pretrained('bus', push_to_hub=True, repo_id='someone/bus', max_shard_size='50kB', private=True,
                      commit_message='One')
processor.save_pretrained('bus', push_to_hub=True, repo_id='someone/bus')
processor.push_to_hub('someone/bus', commit_description='Three', revision='refs/pr/1')
model.config.push_to_hub('someone/bus')
model.config.save_pretrained('bus', push_to_hub=True)
processor.tokenizer.push_to_hub('someone/bus')
"""


def run(code, hub, tmp_path):
    env = {**os.environ, 'PYTHONPATH':str(ROOT), 'HF_ENDPOINT':hub.url, 'HF_HUB_OFFLINE':'0', 'HF_HOME':str(tmp_path),
           'HF_TOKEN':'hf_of_nobody', 'NO_PROXY':'127.0.0.1', 'HF_HUB_DISABLE_TELEMETRY':'1'}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

def test_push_to_hub(hub, tmp_path):
    run(PUSHES, hub, tmp_path)
    (_, first), _, (message, again), (please, proposed), (_, branch) = hub.commits
    card = first['README.md'].decode()
    assert is_ours(card)
    for fact in ('- buses', 'base_model', 'lmsys/vicuna-7b-v1.5', 'license: llama2', '| POPE | F1 | 86.1 |', '| v1 |',
                 "from_pretrained('someone/bus', trust_remote_code=True)"):
        assert fact in card, card
    assert {'modeling.py', 'sharing.py', 'chat_template.jinja', 'processor_config.json'} <= set(first)
    assert please == 'Please' and 'README.md' not in proposed and is_ours(branch['README.md'].decode()) # it had none
    whole = [(p.partition('?')[0].split('/bus/')[-1], 'create_pr=1' in p, who) for p,who in hub.asked if '/bus/' in p]
    assert {('commit/refs%2Fpr%2F2', False, 'Bearer hf_of_me'), ('commit/main', True, 'Bearer hf_of_me')} & set(whole)
    assert ('commit/next', False, 'Bearer hf_of_nobody') in whole
    assert message == 'Again' and not any(f.endswith('.py') or f == 'README.md' for f in again)
    here = tmp_path/'came'
    here.mkdir()
    for name,body in first.items(): (here/name).write_bytes(body)
    model, processor = load(here, 'float32', 'cpu')
    assert processor.template == 'v1' and model.config.history[0]['license'] == 'llama2'


def test_parts(hub, tmp_path):
    "Saved and sent in one call, or a part alone: the card is there first, and each part says which class it is."
    run(PARTS, hub, tmp_path)
    (said, model), (_, first), (_, second), (_, config), (_, again), (_, tokenizer) = hub.commits
    assert said == 'One' and is_ours(model['README.md'].decode()) and len([f for f in model if 'safetensors' in f]) > 2
    assert 'processor_config.json' not in model and 'README.md' in os.listdir(tmp_path/'bus')
    for files,name in ((model, 'config.json'), (first, 'processor_config.json'), (second, 'processor_config.json'),
                       (config, 'config.json'), (again, 'config.json')):
        assert 'auto_map' in json.loads(files[name]) and 'modeling.py' in files
        assert files is model or 'README.md' not in files
    assert 'tokenizer.json' in tokenizer and not any('config.json' == f for f in tokenizer)
    asked = [p for p,_ in hub.asked if p.startswith('/api/')]
    assert any('commit/refs%2Fpr%2F1' in p for p in asked)
    assert 'private' in str(hub.made[0]) and not any('/branch/' in p for p in asked)
    here = tmp_path/'came'
    here.mkdir()
    for name,body in hub.files.items(): (here/name).write_bytes(body)
    assert load(here, 'float32', 'cpu')[1].template == 'v1'
