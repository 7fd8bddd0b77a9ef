"""Data, pictures and results in stores: the same bytes as from files. In memory always; S3 and the web, on loopback,
where s3fs, moto[server] and aiohttp are installed."""
import json, os, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec, pytest
from PIL import Image

ROOT = str(Path(__file__).resolve().parents[2])
LEVELS = """
import sys
from aligngpt.levels.scoring import levels
data, images, out = sys.argv[1:]
print(levels(data, images, clip=lambda image, text: len(text), out=out, workers=2, quiet=True)['json'])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    "Pairs and their pictures, and a cache of our own."
    def turns(i): return [{'from':'human', 'value':'<image>'}, {'from':'gpt', 'value':'a '*(i*7 % 24 + 1)}]
    data = tmp_path/'data'
    (data/'images').mkdir(parents=True)
    for i in range(24): Image.new('RGB', (8, 8), (10*i, 0, 0)).save(data/'images'/f'{i}.png')
    rows = [dict(id=i, image=f'{i}.png', conversations=turns(i)) for i in range(24)]
    (data/'pairs.json').write_text(json.dumps(rows))
    monkeypatch.setenv('ALIGNGPT_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    return tmp_path

def run(*words):
    "(exit code, output) of a process."
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, os.environ.get('PYTHONPATH', '')]), HF_HUB_OFFLINE='1')
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=env, timeout=300)
    return done.returncode, done.stdout + done.stderr

def audited(data, images, out): return run('-m', 'aligngpt.cli', 'audit', data, '--images', images, '--out', out)

def local(place):
    "What both commands make of the files."
    code, said = audited('data/pairs.json', 'data/images', 'audit')
    assert code == 0, said
    code, said = run('-c', LEVELS, 'data/pairs.json', 'data/images', 'levels.json')
    assert code == 0, said
    return verdict((place/'audit'/'report.json').read_bytes()), (place/'levels.json').read_bytes()

def verdict(report): return {k:v for k,v in json.loads(report).items() if k in ('records', 'safe', 'verdict', 'images')}

def test_in_memory(place):
    from aligngpt.data.audit import audit
    from aligngpt.levels.scoring import levels
    fs = fsspec.filesystem('memory')
    fs.put(str(place/'data'), '/held', recursive=True)
    found = audit('memory://held/pairs.json', 'memory://held/images', 'memory://held/audit', workers=0, quiet=True)
    assert found.safe and fs.exists('/held/audit/report.html') and not fs.exists('/held/audit.begun')
    for data, images, out in (('data/pairs.json', 'data/images', 'levels.json'),
                              ('memory://held/pairs.json', 'memory://held/images', 'memory://held/levels.json')):
        done = levels(data, images, clip=lambda image, text: len(text), out=out, workers=0, quiet=True)
        assert done['json'] == out
    assert fs.cat('/held/levels.json') == (place/'levels.json').read_bytes()
    assert fs.exists('/held/levels.parquet') and not [*Path().glob('memory*')]
    fs.rm('/held', recursive=True)

@pytest.fixture
def bucket(place, monkeypatch):
    "An S3 server with the data in a bucket."
    pytest.importorskip('s3fs')
    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    server.start()
    url = 'http://%s:%s' % server.get_host_and_port()
    for k,v in dict(AWS_ACCESS_KEY_ID='x', AWS_SECRET_ACCESS_KEY='x', AWS_DEFAULT_REGION='us-east-1',
                    AWS_ENDPOINT_URL=url).items(): monkeypatch.setenv(k, v)
    fs = fsspec.filesystem('s3', endpoint_url=url)
    fs.mkdir('bucket')
    fs.put(str(place/'data'), 'bucket/there', recursive=True)
    yield fs
    server.stop()

@pytest.mark.slow
def test_s3(place, bucket):
    report, levels = local(place)
    where = [f's3://bucket/there/{n}' for n in ('pairs.json', 'images', 'audit')]
    code, said = audited(*where)
    assert code == 0 and 's3://bucket/there/audit/report.html' in said, said
    assert verdict(bucket.cat('bucket/there/audit/report.json')) == report
    code, said = run('-c', LEVELS, where[0], where[1], 's3://bucket/there/levels.json')
    assert code == 0 and 's3://bucket/there/levels.json' in said, said
    bucket.invalidate_cache()
    assert bucket.cat('bucket/there/levels.json') == levels and bucket.exists('bucket/there/levels.parquet')
    assert not [f for f in bucket.find('bucket') if f.endswith('.begun')] and not [*place.glob('s3*')]
    code, said = audited('s3://none/pairs.json', where[1], 'audit2')
    assert code == 1 and "s3://none/pairs.json: " in said and 'Traceback' not in said, said
    code, said = audited(where[0], where[1], 's3://none/audit')
    assert code == 1 and 's3://none/audit: ' in said and 'Traceback' not in said, said

@pytest.mark.slow
def test_the_web(place):
    pytest.importorskip('aiohttp')
    report, levels = local(place)
    handler = partial(SimpleHTTPRequestHandler, directory=str(place/'data'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    code, said = audited(f'{url}/pairs.json', f'{url}/images', 'web')
    assert code == 0 and verdict((place/'web'/'report.json').read_bytes()) == report, said
    code, said = run('-c', LEVELS, f'{url}/pairs.json', f'{url}/images', 'web.json')
    assert code == 0 and (place/'web.json').read_bytes() == levels, said
    server.shutdown()


def test_a_resolver_that_never_answers(monkeypatch):
    "Where names are never told, the hub is given up after a moment, and nothing waits for it."
    from threading import Event
    from aligngpt.core.errors import AlignGPTError
    from aligngpt.core.stores import check_stores
    never = Event()
    for name in ('HF_HUB_OFFLINE', 'HF_ENDPOINT', 'http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr('socket.getaddrinfo', lambda *args, **kwargs: never.wait() and [])
    try:
        with pytest.raises(AlignGPTError, match='no answer from huggingface.co'): check_stores('hf://datasets/a/b')
    finally: never.set()
