"""Streams from tars and tables, over S3 (moto, on loopback) and HTTP, give the losses of the same shards on a disk; and
ten times what a disk of 200 MB holds trains. S3 needs `moto[server]` and `s3fs`."""
import functools, http.server, importlib.util, io, json, os, shutil, subprocess, sys, tarfile, threading
from pathlib import Path

import pytest
from aligngpt.core.files import read_json
from world import STAGE, world

pytestmark = pytest.mark.slow
ROOT = str(Path(__file__).resolve().parents[2])
ENV = dict(os.environ, PYTHONPATH=ROOT, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
needs_s3 = pytest.mark.skipif(not (importlib.util.find_spec('moto') and importlib.util.find_spec('s3fs')),
                              reason='needs moto[server] and s3fs')
CUTS = (0, 7), (7, 9), (9, 15), (15, 16), (16, 24)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Twenty-four pairs in five tars, and in five tables, their pictures inside."
    import pyarrow as pa, pyarrow.parquet as pq
    d = world(tmp_path_factory.mktemp('stores'))
    rows = json.loads((d/'pairs.json').read_text())
    for kind in ('tar', 'parquet'): (d/kind).mkdir()
    for k, (a, b) in enumerate(CUTS):
        with tarfile.open(d/'tar'/f'{k}.tar', 'w') as t:
            for i, r in enumerate(rows[a:b]):
                for ending, data in (('png', (d/'images'/r['image']).read_bytes()), ('json', json.dumps(r).encode())):
                    entry = tarfile.TarInfo(f'{i:03}.{ending}')
                    entry.size = len(data)
                    t.addfile(entry, io.BytesIO(data))
        pictures = [dict(bytes=(d/'images'/r['image']).read_bytes(), path=None) for r in rows[a:b]]
        pq.write_table(pa.Table.from_pylist([r | dict(image=p) for r,p in zip(rows[a:b], pictures)]),
                       d/'parquet'/f'{k}.parquet')
    return d

@pytest.fixture(scope='module')
def web(place):
    "The folder of a world on loopback."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

@pytest.fixture(scope='module')
def s3(place):
    "A store on loopback with the shards, and how to reach it."
    from moto.server import ThreadedMotoServer
    import s3fs
    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    server.start()
    host, port = server.get_host_and_port()
    env = dict(AWS_ENDPOINT_URL=f'http://{host}:{port}', AWS_ACCESS_KEY_ID='a', AWS_SECRET_ACCESS_KEY='b',
               AWS_DEFAULT_REGION='us-east-1')
    fs = s3fs.S3FileSystem(key='a', secret='b', endpoint_url=env['AWS_ENDPOINT_URL'])
    fs.mkdir('bucket')
    for kind in ('tar', 'parquet'):
        for p in sorted((place/kind).glob(f'*.{kind}')): fs.put_file(str(p), f'bucket/{kind}/{p.name}')
    yield env
    server.stop()

def train(place, out, data, *more, env=(), before=()):
    "The losses of a stage that streams, in a process of its own."
    words = ['pretrain', '--stream', *(w for d in data for w in ('--data', d)), '--model', place/'toy', '--out', out,
             *STAGE, '--accumulate', 1, '--sharding', 'none', *more]
    p = subprocess.run([*before, sys.executable, '-m', 'aligngpt.cli', *map(str, words)], capture_output=True,
                       text=True, env={**ENV, 'ALIGNGPT_CACHE':str(out) + '-cache', **dict(env)})
    assert p.returncode == 0, (p.stdout + p.stderr)[-3000:]
    return read_json(Path(out)/'done.json')['losses']

@pytest.fixture(scope='module')
def on_disk(place):
    "The losses of shards on a disk, by kind."
    return {kind:train(place, place/f'disk-{kind}', [place/kind], '--max-steps', 6) for kind in ('tar', 'parquet')}

def test_kinds(on_disk): assert on_disk['tar'] == on_disk['parquet'] and len(on_disk['tar']) == 6

@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_http(place, web, on_disk, tmp_path, kind):
    data = [f'{web}/{kind}/{k}.{kind}' for k in range(len(CUTS))]
    assert train(place, tmp_path/'run', data, '--max-steps', 6) == on_disk[kind]
    assert not [p for p in (tmp_path/'run-cache').rglob(f'*.{kind}') if p.is_file()]

@needs_s3
@pytest.mark.parametrize('kind', ['tar', 'parquet'])
def test_s3(place, s3, on_disk, tmp_path, kind):
    assert train(place, tmp_path/'run', [f's3://bucket/{kind}'], '--max-steps', 6, env=s3) == on_disk[kind]
    assert not [p for p in (tmp_path/'run-cache').rglob(f'*.{kind}') if p.is_file()]


def namespaces():
    "Can a process have a disk of its own?"
    return shutil.which('unshare') and not subprocess.run(
        ['unshare', '-Urm', 'sh', '-c', 'mount -t tmpfs -o size=1m tmpfs /mnt'], capture_output=True).returncode

@pytest.mark.skipif(not namespaces(), reason='no namespaces here')
def test_ten_times_the_disk(place, web, tmp_path):
    "Fifty shards of 40 MB through a cache of 200 MB, which is a file system of that size."
    import pyarrow as pa, pyarrow.parquet as pq
    from PIL import Image
    (place/'large').mkdir()
    rows = []
    for k in range(10):
        b = io.BytesIO()
        Image.frombytes('RGB', (1160, 1160), os.urandom(1160*1160*3)).save(b, 'PNG', compress_level=0)
        rows.append(dict(id=k, image=dict(bytes=b.getvalue(), path=None), similarity=k % 8, conversations=[
            {'from':'human', 'value':'<image>'}, {'from':'gpt', 'value':'a red circle'}]))
    pq.write_table(pa.Table.from_pylist(rows), place/'large'/'000.parquet', use_dictionary=False, compression='none')
    size = (place/'large'/'000.parquet').stat().st_size
    for k in range(1, 50): os.link(place/'large'/'000.parquet', place/'large'/f'{k:03}.parquet')
    assert 50*size >= 10*200e6
    (tmp_path/'cache').mkdir()
    disk = ['unshare', '-Urm', 'sh', '-c', f'mount -t tmpfs -o size=200m tmpfs {tmp_path}/cache && exec "$@"', 'sh']
    found = train(place, tmp_path/'run', [f'{web}/large/{k:03}.parquet' for k in range(50)], '--max-steps', 125,
                  env=dict(ALIGNGPT_CACHE=str(tmp_path/'cache'), TMPDIR=str(tmp_path/'cache')), before=disk)
    assert len(found) == 125
    print(f'\n{50*size/1e6:,.0f} MB through 200')
