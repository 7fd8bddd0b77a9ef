"The nginx example of the guide: two replicas are restarted one after the other, and none of sixteen clients notices."
import json, re, shutil, signal, socket, subprocess, threading, time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from served import save_runs, serve, until

GUIDE = Path(__file__).resolve().parents[2]/'docs_src'/'guides'/'serving.md'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which('nginx'), reason='no nginx here')]
MAIN = """daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{ access_log {folder}/access.log combined; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
{example} }}
"""


def ports(n):
    "Ports that are free."
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(n)]
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets: s.close()
    return found

def configure(folder, port, replicas):
    "The configuration of the guide, at other addresses."
    example = re.search(r'```nginx\n(.*?)```', GUIDE.read_text(), re.S)[1].replace('443 ssl', f'127.0.0.1:{port}')
    for k,p in enumerate(replicas, 1): example = example.replace(f'10.0.0.{k}:8000', f'127.0.0.1:{p}')
    folder.mkdir()
    (folder/'nginx.conf').write_text(MAIN.format(folder=folder, example=example))
    return folder/'nginx.conf'

def answers(url, path='', data=None, seconds=240):
    "(status, what came)"
    try:
        with urlopen(Request(url + path, data, {'Content-Type':'application/json'}), timeout=seconds) as r:
            return r.status, r.read()
    except (OSError, URLError) as e: return getattr(e, 'code', 0), str(e).encode()

def client(url, k, done, seen):
    "Ask without a pause; every second client reads a stream."
    body = dict(model='toy', max_tokens=8, stream=bool(k % 2), messages=[dict(role='user', content=f'What is {k}?')])
    while not done.is_set():
        status, said = answers(url, '/v1/chat/completions', json.dumps(body).encode())
        whole = said.rstrip().endswith(b'data: [DONE]') if k % 2 else b'"finish_reason"' in said
        seen.append((status, whole, time.monotonic(), b'' if status == 200 and whole else said[-300:]))

def test_a_rolling_restart(tmp_path):
    save_runs(tmp_path)
    front, *back = ports(3)
    url, done, seen = f'http://127.0.0.1:{front}', threading.Event(), []
    clients = [threading.Thread(target=client, args=(url, k, done, seen)) for k in range(16)]
    with ExitStack() as stack:
        def begin(port): return stack.enter_context(serve(tmp_path, 'toy', '--no-page', '--drain', '4', '--port',
                                                          str(port)))
        replicas = [begin(p) for p in back]
        nginx = subprocess.Popen(['nginx', '-p', tmp_path, '-c', configure(tmp_path/'nginx', front, back)],
                                 stderr=subprocess.PIPE)
        stack.callback(nginx.communicate); stack.callback(nginx.send_signal, signal.SIGQUIT)
        stack.callback(done.set)
        until(lambda: answers(url, '/ready')[0] == 200)
        for c in clients: c.start()
        until(lambda: len(seen) > 64)
        for r, port in zip(replicas, back):
            r.process.send_signal(signal.SIGTERM)
            until(lambda: answers(f'http://127.0.0.1:{port}', '/ready')[0] == 503)
            r.process.wait(120)
            alone = len(seen)
            until(lambda: len(seen) > alone + 32) # of the other one
            begin(port)
            until(lambda: answers(f'http://127.0.0.1:{port}', '/ready')[0] == 200)
        after = len(seen)
        until(lambda: len(seen) > after + 64)
        done.set()
        for c in clients: c.join()
    bad = [s for s in seen if s[0] != 200 or not s[1]]
    print(f'\n{len(seen)} requests, {len(bad)} failed')
    assert not bad, (len(bad), bad[:3], (tmp_path/'nginx'/'error.log').read_text()[-2000:])
