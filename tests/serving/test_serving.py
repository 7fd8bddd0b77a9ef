"""`aligngpt serve` in a process of its own, as clients see it: OpenAI's client, many at once, too many, gone ones,
hostile ones."""
import asyncio, base64, http.client, io, json, os, signal, socket, subprocess, sys, time
from io import BytesIO
from statistics import median, quantiles

import pytest

for name in ('openai', 'uvicorn', 'gradio'):
    pytest.importorskip(name, reason=f"no {name}: pip install 'aligngpt[dev]'")
import httpx, openai
from aligngpt.chat.session import ChatSession
from aligngpt.testing.hostile import bombs, half_pictures, no_pictures, odd_pictures
from aligngpt.model.toy import COLOURS, QUESTIONS, swatch, toy, toy_answer
from served import root, save_runs, serve, until

TALKS = [(q, c) for q in QUESTIONS for c in (*COLOURS, None)]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A folder with runs to serve."
    folder = tmp_path_factory.mktemp('runs')
    save_runs(folder)
    (folder/'key').write_text('s3cret')
    return folder


@pytest.fixture(scope='module')
def open_server(runs):
    "The toy for everybody on this machine, with its page."
    with serve(runs, 'toy') as server: yield server


@pytest.fixture(scope='module')
def locked_server(runs):
    "The toy for those who have the key, with a short queue."
    with serve(runs, 'toy', '--no-page', '--api-key-file', 'key', '--queue', '32') as server: yield server


def data_url(data): return 'data:image/png;base64,' + base64.b64encode(data).decode()


def png(colour):
    "A swatch as the bytes of a PNG."
    out = BytesIO()
    swatch(colour).save(out, 'PNG')
    return out.getvalue()


def user(text, *colours):
    "What the user says, with pictures."
    return dict(role='user', content=[*(dict(type='image_url', image_url=dict(url=data_url(png(c)))) for c in colours
                                        if c), dict(type='text', text=text)])


def figures(**what):
    "Print what was measured; shown by `pytest -rP`."
    print(' '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' for k,v in what.items()))


def test_openai(locked_server):
    "The official client, unchanged: chat, streaming, pictures, an alignment, errors, a key."
    client = openai.OpenAI(base_url=locked_server.url + '/v1', api_key='s3cret', max_retries=0)
    def ask(*messages, **kw):
        return client.chat.completions.create(model='toy', messages=list(messages), **{'temperature':0, **kw})
    assert [m.id for m in client.models.list()] == ['toy']
    blue = user(QUESTIONS[0], 'blue')
    whole = ask(blue)
    said = whole.choices[0].message
    assert (said.content, said.role, whole.choices[0].finish_reason) == ('It is **blue**.', 'assistant', 'stop')
    chunks = list(ask(blue, dict(role='assistant', content=said.content), user(QUESTIONS[3]), stream=True,
                      stream_options=dict(include_usage=True)))
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert ''.join(texts) == toy_answer(QUESTIONS[3]) # in as many pieces as there was time for
    assert chunks[-1].usage.completion_tokens == 11 and chunks[-2].choices[0].finish_reason == 'stop'
    assert ask(user(QUESTIONS[0], 'blue'), dict(role='assistant', content='It is **blue**.'),
               user(QUESTIONS[0], 'red')).choices[0].message.content == 'It is **red**.'
    want = ChatSession(*toy(), temperature=0).ask(QUESTIONS[2], [swatch('green'), swatch('red')])
    two = ask(user(QUESTIONS[2], 'green', 'red')) # in one message
    assert (two.choices[0].message.content, two.usage.prompt_tokens) == (want.text, want.prompt_tokens)
    assert ask(blue, extra_body=dict(alignment=2)).aligngpt['weights'] == [0, 0, 1, 0, 0, 0, 0, 0]
    for kind,kw in ((openai.BadRequestError, dict(temperature=-1)),
                    (openai.BadRequestError, dict(extra_body=dict(alignment=99))),
                    (openai.NotFoundError, dict(model='gpt'))):
        with pytest.raises(kind) as e: client.chat.completions.create(**{**dict(model='toy', messages=[blue]), **kw})
        assert e.value.body['message'] and e.value.response.headers['x-request-id']
    with pytest.raises(openai.BadRequestError, match='not an image'):
        ask(dict(role='user', content=[dict(type='image_url', image_url=dict(url=data_url(b'Dear Sir')))]))
    with pytest.raises(openai.BadRequestError, match='fetches nothing'):
        ask(dict(role='user', content=[dict(type='image_url', image_url=dict(url='http://127.0.0.1/a.png'))]))
    with pytest.raises(openai.BadRequestError) as e: ask(user('red '*600))
    assert e.value.code == 'context_length_exceeded'
    with pytest.raises(openai.AuthenticationError): client.with_options(api_key='s3cre').models.list()
    assert e.value.request_id in locked_server.log.read_text()


def shown(text, colour):
    "What the user says with a picture, in the words of the responses interface."
    return dict(role='user', content=[dict(type='input_image', image_url=data_url(png(colour)), detail='auto'),
                                      dict(type='input_text', text=text)])


def test_openai_talks(open_server):
    "The official client over several turns, its own objects as history: chat and responses, whole and streamed."
    client = openai.OpenAI(base_url=open_server.url + '/v1', api_key='none', max_retries=0)
    chat, how = client.chat.completions, dict(model='toy', temperature=0)
    talk, told = [dict(role='assistant', content='Hello!'), user(QUESTIONS[0], 'blue')], []
    for question in (user(QUESTIONS[3]), dict(role='system', content='Be brief.'), user(QUESTIONS[0], 'red')):
        said = chat.create(messages=talk, **how).choices[0].message
        told.append(said.content)
        talk += [said.model_dump() if len(talk) % 2 else said, question] if question['role'] == 'user' else [question]
    with chat.stream(messages=talk, logprobs=True, top_logprobs=3, **how) as stream:
        last = stream.get_final_completion().choices[0]
    assert told == ['It is **blue**.', toy_answer(QUESTIONS[3]), toy_answer(QUESTIONS[3])]
    assert last.message.content == 'It is **red**.' == ''.join(t.token for t in last.logprobs.content).strip()
    assert [c.message.content for c in chat.create(messages=talk, n=3, **how).choices] == ['It is **red**.']*3
    items = [shown(QUESTIONS[0], 'blue')]
    for question in (shown(QUESTIONS[0], 'red'), dict(role='user', content=QUESTIONS[3])):
        items += [*client.responses.create(input=items, instructions='Be brief.', **how).output, question]
    with client.responses.stream(input=items, **how) as stream: kinds = [e.type for e in stream]
    assert stream.get_final_response().output_text == toy_answer(QUESTIONS[3])
    assert [o.content[0].text for o in items if not isinstance(o, dict)] == ['It is **blue**.', 'It is **red**.']
    assert kinds[0] == 'response.created' and kinds[-1] == 'response.completed'
    with pytest.raises(openai.NotFoundError, match='messages instead of a prompt'):
        client.completions.create(model='toy', prompt='Hello')
    with pytest.raises(openai.NotFoundError, match='keeps nothing'): client.responses.retrieve('resp_1')
    assert client.models.retrieve('toy').id == 'toy'


def test_key_before_body(locked_server):
    "A long body, or nonsense, of somebody without the key is neither read nor looked at."
    def ask(content):
        return httpx.post(locked_server.url + '/v1/chat/completions', content=content, timeout=600,
                          headers={'Content-Type':'application/json'})
    assert ask(b'{').status_code == 401
    before = locked_server.memory
    answers = [ask(b'["' + b'x'*75_000_000 + b'"]') for _ in range(3)]
    figures(memory_before_MB=before, after_MB=locked_server.memory)
    assert [r.json()['error']['code'] for r in answers] == ['invalid_api_key']*3
    assert locked_server.memory - before < 16
    host, port = locked_server.url.split('//')[1].split(':')
    with socket.create_connection((host, int(port)), timeout=60) as s: # the answer comes before there is any body
        s.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 75000000\r\n\r\n')
        assert b'401' in s.recv(100)


async def stream(client, question, colour, **kw):
    "(the answer, seconds to its first text)."
    start, first, text = time.perf_counter(), None, ''
    async for c in await client.chat.completions.create(model='toy', messages=[user(question, colour)], stream=True,
                                                        temperature=0, **kw):
        if c.choices and (piece := c.choices[0].delta.content):
            first, text = first or time.perf_counter() - start, text + piece
    return text, first


def test_many_streams(open_server):
    "64 clients at once hear what each would hear alone."
    async def main(url):
        async with openai.AsyncOpenAI(base_url=url + '/v1', api_key='none', max_retries=0) as client:
            alone = {t:await stream(client, *t) for t in TALKS}
            talks, start = [TALKS[i % len(TALKS)] for i in range(64)], time.perf_counter()
            together = await asyncio.gather(*[stream(client, *t) for t in talks])
            return alone, dict(zip(enumerate(talks), together)), time.perf_counter() - start
    alone, together, seconds = asyncio.run(main(open_server.url))
    assert [text for text,_ in together.values()] == [alone[t][0] for _,t in together]
    assert alone[QUESTIONS[0], 'blue'][0] == 'It is **blue**.'
    first = quantiles([f for _,f in together.values()], n=20)
    figures(first_token_alone_s=max(f for _,f in alone.values()), first_token_p50_s=first[9],
            first_token_p95_s=first[18], all_64_s=seconds)


def test_flood(locked_server):
    "A thousand requests for a queue of 32: answered or sent away, and no memory kept."
    bodies = [json.dumps(dict(model='toy', messages=[user(*t)], temperature=0)) for t in TALKS]
    headers = {'Authorization':'Bearer s3cret', 'Content-Type':'application/json'}
    async def main():
        async with httpx.AsyncClient(base_url=locked_server.url, headers=headers, timeout=600,
                                     limits=httpx.Limits(max_connections=400)) as client:
            async def ask(i): return await client.post('/v1/chat/completions', content=bodies[i % len(bodies)])
            await asyncio.gather(*map(ask, range(400))) # so that caches are full
            memory = [locked_server.memory]
            answers = await asyncio.gather(*map(ask, range(1000)))
            return [*memory, locked_server.memory], answers
    start = time.perf_counter()
    memory, answers = asyncio.run(main())
    good, busy = [[r for r in answers if r.status_code == s] for s in (200, 429)]
    figures(answered=len(good), sent_away=len(busy), memory_MB=memory, seconds=time.perf_counter() - start)
    assert good and len(good) + len(busy) == 1000 # how many are sent away depends on who is faster
    assert all(1 <= int(r.headers['retry-after']) <= 60 for r in busy)
    assert all(r.json()['choices'][0]['finish_reason'] == 'stop' for r in good)
    assert memory[1] - memory[0] < 16, memory


@pytest.mark.slow
def test_long_flood(locked_server):
    "Eight thousand requests, a thousand at a time."
    headers = {'Authorization':'Bearer s3cret', 'Content-Type':'application/json'}
    bodies = [json.dumps(dict(model='toy', messages=[user(*t)], temperature=0)) for t in TALKS]
    async def thousand(client):
        return await asyncio.gather(*[client.post('/v1/chat/completions', content=bodies[i % len(bodies)])
                                      for i in range(1000)])
    async def main():
        async with httpx.AsyncClient(base_url=locked_server.url, headers=headers, timeout=600,
                                     limits=httpx.Limits(max_connections=400)) as client:
            return [({r.status_code for r in await thousand(client)}, locked_server.memory) for _ in range(8)]
    seen = asyncio.run(main())
    figures(memory_MB=[round(m) for _,m in seen])
    assert set().union(*(c for c,_ in seen)) <= {200, 429}
    assert seen[-1][1] - seen[0][1] < 24, seen


@pytest.mark.slow
def test_batching_pays(runs):
    "Tokens per second of sixteen clients at once and of sixteen in turn, three times. Shown, not asserted."
    body = json.dumps(dict(model='babbler', messages=[user('Hm?', 'blue')], max_tokens=64, temperature=0))
    async def main(url):
        async with httpx.AsyncClient(base_url=url, headers={'Content-Type':'application/json'},
                                     timeout=600) as client:
            async def ask():
                return (await client.post('/v1/chat/completions', content=body)).json()['usage']['completion_tokens']
            async def waiting(): return [await ask() for _ in range(16)]
            async def speed(f):
                start = time.perf_counter(); n = sum(await f()); return n/(time.perf_counter() - start)
            await ask()
            return zip(*[(await speed(waiting), await speed(lambda: asyncio.gather(*[ask() for _ in range(16)])))
                         for _ in range(3)])
    with serve(runs, 'babbler', '--no-page') as server: single, together = map(median, asyncio.run(main(server.url)))
    figures(tokens_per_second_in_turn=single, at_once=together, ratio=together/single, bar=4)


def test_gone(tmp_path):
    "Clients that go away in mid-stream leave their places, a hundred times, though each answer is held in the middle."
    hold = tmp_path/'hold'
    hold.touch()
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=600) as client:
        address = server.url.split('//')[1]
        body = json.dumps(dict(model='toy', messages=[user('Count to ten.')], stream=True, temperature=0))
        def begin():
            c = http.client.HTTPConnection(address, timeout=600)
            c.request('POST', '/v1/chat/completions', body, {'Content-Type':'application/json'})
            r = c.getresponse()
            while b'"content": "' not in (line := r.readline()) or b'"content": ""' in line: assert line
            return c, r
        def running(): return client.get('/health').json()['running']
        free = []
        for _ in range(100):
            c, r = begin()
            r.close(); c.close()
            free.append(until(lambda: not running()))
        counts = client.get('/metrics').text
        tokens = float(next(l for l in counts.splitlines()
                            if l.startswith('aligngpt_tokens_total{kind="completion"}')).split()[1])
        figures(free_after_s_median=median(free), free_after_s_most=max(free), tokens_written_for_each=tokens/100)
        assert tokens <= 100*4, tokens # of eleven
        hold.unlink()


def test_hostile_pictures(open_server):
    "Every picture of the hostile collection is answered or refused, by the API and by the page."
    with httpx.Client(base_url=open_server.url, timeout=600) as client:
        for h in no_pictures() + half_pictures() + bombs() + odd_pictures():
            said = client.post('/v1/chat/completions',
                               json=dict(model='toy', max_tokens=2, messages=[dict(role='user',
                content=[dict(type='image_url', image_url=dict(url=data_url(h.data)))])]))
            kept = client.post('/page/gradio_api/upload', files=[('files', (f'../../{h.name}', h.data))])
            assert said.status_code in (200, 400, 413) and kept.status_code in (200, 400, 413), (h.name, said.text, kept.text)
            assert (said.status_code == 200) == (kept.status_code == 200), h.name
        assert client.get('/health').json()['status'] == 'ok'
        assert ' ERROR ' not in open_server.log.read_text()


@pytest.mark.parametrize('phases', ['examples,fuzzing', pytest.param('coverage', marks=pytest.mark.slow)])
def test_fuzz(phases, runs, open_server):
    "A fuzzer that knows the description of the API finds no internal error, and nothing beyond it."
    pytest.importorskip('schemathesis', reason="no schemathesis: pip install 'aligngpt[dev]'")
    schema = httpx.get(open_server.url + '/openapi.json').json()
    for kind in ('ChatRequest', 'ResponseRequest'): # most requests shall go further than to the model's name
        schema['components']['schemas'][kind]['properties']['model']['enum'] = ['toy']
    schema['components']['schemas']['ImageURL']['properties']['url']['examples'] = [data_url(png('blue')),
        data_url(png('red')[:40]), 'http://127.0.0.1:1/a.png']
    (runs/'openapi.json').write_text(json.dumps(schema))
    done = subprocess.run([sys.executable, '-m', 'schemathesis.cli', 'run', 'openapi.json', '--url', open_server.url,
                           '--seed', '1', '--max-examples', '60', '--workers', '2',
                           '--phases', phases, '--exclude-checks', 'positive_data_acceptance', '--no-color'],
                           cwd=runs, capture_output=True, text=True, timeout=1800)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert ' ERROR ' not in open_server.log.read_text()


def test_fits_the_terminal(runs):
    "At a terminal of 80 columns nothing is longer but addresses; standard error is a terminal, too."
    pexpect = pytest.importorskip('pexpect', reason='no pexpect: pip install pexpect')
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', TERM='xterm-256color')
    env.pop('COLUMNS', None)
    line = ['-m', 'aligngpt.cli', 'serve', 'toy', '--port', '0', '--no-page']
    term = pexpect.spawn(sys.executable, line, env=env, cwd=runs, encoding='utf-8', dimensions=(24, 80), timeout=240,
                         # a shell's background jobs are born deaf to Ctrl-C
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    seen = io.StringIO()
    term.logfile_read = seen
    term.expect(r'http://127.0.0.1:(\d+)/v1')
    at = f'http://127.0.0.1:{term.match[1]}/v1'
    term.expect('startup complete')
    for body in (dict(messages=[user('Count to ten.', 'red')]), dict(messages=[dict(role='user', content=7)]), {}):
        httpx.post(f'{at}/chat/completions', json=body, timeout=60)
    httpx.get(f'{at}/' + 'x'*100)
    term.sendintr()
    term.expect(pexpect.EOF)
    lines = seen.getvalue().replace('\r', '').split('\n')
    assert sum('/v1/chat/completions' in l for l in lines) == 3, lines
    assert [l for l in lines if len(l) > 80 and '://' not in l] == []
