"""Bytes that no honest client sends, on a bare socket: refused with a status, and nobody else notices. With a key, too:
whatever the shape of a request, nothing of /v1 is answered without it."""
import json, re, socket, time

import pytest

for name in ('openai', 'uvicorn'): pytest.importorskip(name, reason=f"no {name}: pip install 'aligngpt[dev]'")
import httpx
from served import save_runs, serve

CHAT, RESPONSES = b'/v1/chat/completions', b'/v1/responses'
BODIES = {CHAT:dict(messages=[dict(role='user', content='Count to ten.')], max_tokens=2),
          RESPONSES:dict(input='Count to ten.', max_output_tokens=2)}
CHUNKED, HOST = b'Transfer-Encoding: chunked\r\n', b'Host: localhost\r\n'
CODINGS = 'gzip', 'br', 'zstd', 'deflate', 'gzip, gzip', 'identity, gzip', 'GZIP', 'x'*5000


@pytest.fixture(scope='module', params=['open', 'locked'])
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    save_runs(folder)
    (folder/'key').write_text('s3cret')
    locked = ('--api-key-file', 'key')*(request.param == 'locked')
    with serve(folder, 'toy', '--no-page', *locked) as server:
        server.locked = bool(locked)
        yield server


def post(route, more=b'', how='length', version=b'1.1', method=b'POST', target=None, kind=b'application/json'):
    "The bytes of a request that would be answered, but for what is asked for."
    body = json.dumps(dict(BODIES[route], model='toy')).encode()
    head = method + b' ' + (target or route) + b' HTTP/' + version + b'\r\n' + HOST + b'Content-Type: ' + kind + b'\r\n'
    head += b'Connection: close\r\n' + more
    chunk = b'%x\r\n' % len(body) + body + b'\r\n0\r\n\r\n'
    return dict(length=head + b'Content-Length: %d\r\n\r\n' % len(body) + body,
                chunked=head + CHUNKED + b'\r\n' + chunk,
                both=head + CHUNKED + b'Content-Length: 4\r\n\r\n' + chunk, head=head + b'\r\n',
                begun=head + CHUNKED + b'\r\n')[how]


def odd(route):
    "(bytes, statuses that may come; none: the connection stays open or is closed without a word)"
    yield post(route), {200}
    yield post(route, how='chunked'), {200}
    yield post(route, version=b'1.0'), {200}
    yield post(route, b'Expect: 100-continue\r\n'), {100, 200}
    yield post(route)[:-9].replace(b'Connection: close\r\n', b'') + post(route)[-9:] + post(route), {200} # two in a row
    yield post(route, how='both') + b'GET /v1/models HTTP/1.1\r\n' + HOST + b'\r\n', {400} # of two lengths
    for more in (b'Content-Length: 3\r\n', b'Content-Length: -1\r\n', CHUNKED + CHUNKED,
                 b'Transfer-Encoding: gzip, chunked\r\n', b'Transfer-Encoding : chunked\r\n', b'Host: evil\r\n',
                 b'X: a\0b\r\n', b'no colon\r\n', b'X: y\r\n'*50_000, b'X: ' + b'y'*1_000_000 + b'\r\n'):
        yield post(route, more), {400}
    for size in (b'f'*40, b'-5', b'5;' + b'a'*200_000):
        yield post(route, how='begun') + size + b'\r\nabcde\r\n0\r\n\r\n', {400}
    yield post(route, b'Content-Length: 50000001\r\n', 'head'), {413}
    for c in CODINGS: yield post(route, f'Content-Encoding: {c}\r\n'.encode()), {415}
    yield post(route, b'Content-Encoding: identity\r\nContent-Encoding: gzip\r\n'), {415}
    for kind in (b'multipart/form-data; boundary=x', b'text/plain', b'application/x-www-form-urlencoded', b''):
        yield post(route, kind=kind), {400}
    for m in (b'PUT', b'DELETE', b'TRACE', b'CONNECT', b'FOO', b'X'*5000): yield post(route, method=m), {405}
    upgrade = b'Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n'
    yield post(route, upgrade, 'head', method=b'GET'), {405}
    for t in (b'http://evil.example' + route, b'/' + route, route + b'%00', route + b'/..', b'*', b'/' + b'a'*60_000):
        yield post(route, target=t), {404}
    yield post(route, target=b'/' + b'a'*1_000_000), {400}
    for data in (b'GET /health\r\n\r\n', b'\x16\x03\x01\x02\0\x01' + bytes(500), bytes(range(256))*50):
        yield data, {400}


def said(server, data):
    "What comes back on a connection of its own."
    host, port = server.url.split('//')[1].split(':')
    with socket.create_connection((host, int(port)), timeout=60) as s:
        out = b''
        try:
            s.sendall(data)
            while piece := s.recv(1 << 16): out += piece
        except ConnectionError: pass # it hung up before it had read all
    return out


def test_odd_bytes(server):
    before = server.memory
    for data,want in [o for route in BODIES for o in odd(route)]:
        got = said(server, data)
        statuses = {int(s) for s in re.findall(rb'^HTTP/1\.1 (\d+)', got, re.M)}
        if server.locked: assert 200 not in statuses and statuses <= {100, 401, *want}, (data[:200], got[:300])
        else: assert statuses <= want, (data[:200], want, got[:300]) # none where it hung up while we were sending
    assert server.memory - before < 64
    assert ' ERROR ' not in server.log.read_text()


def test_silent_ones_make_room(server):
    "More silent connections than there may be, and half requests: who asks is answered."
    host, port = server.url.split('//')[1].split(':')
    crowd = []
    try:
        for i in range(600):
            crowd.append(socket.create_connection((host, int(port)), timeout=60))
            if i % 2: crowd[-1].send(b'POST /v1/chat/completions HTTP/1.1\r\nHost: loc')
        times = []
        for _ in range(20):
            start = time.perf_counter()
            assert httpx.get(f'{server.url}/health', timeout=60).status_code == 200
            times.append(time.perf_counter() - start)
        print(f'/health beside 600 silent connections: at most {max(times):.3f} s')
    finally:
        for s in crowd: s.close()
