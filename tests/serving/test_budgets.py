"""What one request can take from others: an enemy's requests, while somebody asks and somebody looks after the server,
all on the same cores. Times are shown (`pytest -m slow -rP`), memory and answers are asserted."""
import asyncio, base64, json, re, struct, sys, time, zlib
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

for name in ('openai', 'uvicorn'): pytest.importorskip(name, reason=f"no {name}: pip install 'aligngpt[dev]'")
import httpx
from PIL import Image
from served import save_runs, serve, until

pytestmark = pytest.mark.slow
CHAT, RESPONSES, OTHERS = '/v1/chat/completions', '/v1/responses', Path(__file__).with_name('others.py')


def png(width, height, colour=0, depth=1):
    "A black picture, small on the way."
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    row = 1 + -(-width*depth*(3 if colour == 2 else 1)//8)
    head = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(row*height))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


def encoded(width, height, kind, **kw):
    out = BytesIO()
    Image.linear_gradient('L').resize((width, height)).convert('RGB').save(out, kind, **kw)
    return out.getvalue()


def body_of(*pictures, text='What colour is it?', route=CHAT, **kw):
    "The bytes of a request."
    urls = ['data:;base64,' + base64.b64encode(p).decode() for p in pictures]
    how = dict(model='toy', temperature=0, **kw)
    if route == CHAT:
        parts = [*(dict(type='image_url', image_url=dict(url=u)) for u in urls), dict(type='text', text=text)]
        return json.dumps(dict(how, messages=[dict(role='user', content=parts)], max_tokens=8)).encode()
    parts = [*(dict(type='input_image', image_url=u, detail='auto') for u in urls), dict(type='input_text', text=text)]
    return json.dumps(dict(how, input=[dict(role='user', content=parts)], max_output_tokens=8)).encode()


def attacks(route):
    "(name, body, how often at once, statuses that may come)"
    ask = partial(body_of, route=route)
    said = 'messages' if route == CHAT else 'input'
    one_bit, layers = png(8000, 6250), encoded(8000, 6250, 'JPEG', progressive=True, quality=20)
    tiff = b'II*\0\x08\0\0\0' + b''.join(struct.pack('<HI', 0, 14 + 6*i) for i in range(300_000))
    yield 'eight pictures of 50 megapixels, three times', ask(*[one_bit]*8), 3, {400}
    yield 'two such pictures, which may be sent, three times', ask(one_bit, one_bit), 3, {200}
    yield 'sixteen coloured ones of 12 megapixels', ask(*[png(4000, 3000, 2, 8)]*8), 2, {200}
    yield 'JPEG of 50 megapixels in layers', ask(layers, layers), 2, {200}
    yield 'WebP of 6 megapixels', ask(*[encoded(3000, 2080, 'WEBP', quality=20, method=0)]*2), 2, {200}
    yield 'strips, 200 times as long as wide', ask(*[png(100_000, 500)]*2), 2, {200}
    yield '16 MB of text', ask(text='word '*3_200_000), 1, {400}
    yield '256 kB of text, sixteen times', ask(text='word '*50_000), 16, {400}
    if route == CHAT: # the other has no stop strings
        yield 'four stop strings of 300,000 characters', ask(stop=['one, two, '*30_000]*4), 1, {400}
        yield 'four stop strings of 1,000 characters, eight times', ask(stop=['one, two, '*100]*4), 8, {200}
    yield 'TIFF of many directories', ask(tiff), 4, {400}
    yield '31 MB of empty lists', b'{"model":"toy","%s":[' % said.encode() + b'[],'*10_200_000 + b'[]]}', 1, {413}
    yield '80 MB of empty lists', b'{"model":"toy","%s":[' % said.encode() + b'[],'*26_000_000 + b'[]]}', 1, {413}
    yield '31 MB of pictures in one request, four times', ask(*[one_bit + bytes(2_880_000)]*8), 4, {400, 429}
    yield '80 MB of pictures in one request, four times', ask(*[one_bit + bytes(7_500_000)]*8), 4, {413}


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    save_runs(folder)
    with serve(folder, 'toy', '--no-page') as server:
        server.stated = float(re.search(r'at most ([0-9.]+) GB', server.process.stdout.readline())[1])*1000
        yield server


async def first_token(client, body):
    "Seconds to the first text of a stream."
    start = time.perf_counter()
    async with client.stream('POST', CHAT, content=body) as r:
        assert r.status_code == 200, await r.aread()
        async for line in r.aiter_lines():
            if '"content": "' in line and '"content": ""' not in line: return time.perf_counter() - start


async def other(*arguments):
    "Another process, see `others.py`."
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, OTHERS, *arguments, stdin=pipe, stdout=pipe)


async def told(process):
    "What it found, when its input ends."
    return json.loads((await process.communicate(b''))[0])


async def under(server, route, *sent):
    "While a body is sent a few times, or nothing is: the statuses, first tokens of others, times of `/health`, memory."
    small, over, firsts, memories = body_of(encoded(64, 64, 'PNG'), stream=True), asyncio.Event(), [], []
    head = {'Content-Type':'application/json'}
    async with httpx.AsyncClient(base_url=server.url, headers=head, timeout=600) as user:
        async def watch(what, seen):
            while not over.is_set():
                seen.append(await what())
                await asyncio.sleep(.02)
        async def memory(): return server.memory
        looks = await other('health', server.url)
        watched = (lambda: first_token(user, small), firsts), (memory, memories)
        tasks = [asyncio.create_task(watch(*w)) for w in watched]
        if sent: statuses = await told(await other('send', server.url, route, *map(str, sent)))
        else: statuses = await asyncio.sleep(2)
        over.set()
        await asyncio.gather(*tasks)
    return statuses, max(firsts), sorted(await told(looks)), max(memories)


@pytest.mark.parametrize('route', [CHAT, RESPONSES])
def test_nobody_waits_for_an_enemy(server, tmp_path, route):
    "Others' first token at most a second later, `/health` 0.1 s; memory below what is stated, and back."
    def times(s): return f'{s[len(s)//2]:.3f} s, at most {s[-1]:.3f}'
    def under_body(body, n):
        (tmp_path/'body').write_bytes(body)
        return asyncio.run(under(server, route, tmp_path/'body', n))
    under_body(body_of(route=route), 8)
    before = server.memory
    print(f'{before:.0f} MB; stated +{server.stated:.0f}')
    for name, body, n, want in attacks(route):
        _, alone, calm, _ = asyncio.run(under(server, route))
        statuses, first, health, most = under_body(body, n)
        end = time.perf_counter() + 60
        while server.memory >= 1.1*before and time.perf_counter() < end: time.sleep(.1)
        more = most - before
        print(f'{name}: {sorted(set(statuses))}; first token {first:.2f} s (without: {alone:.2f}), '
              f'/health {times(health)} (without: {times(calm)}), memory +{more:.0f} MB '
              f'({more/server.stated:.2f} of what is stated), afterwards +{server.memory - before:.0f}')
        assert set(statuses) <= want and statuses, name
        assert more < server.stated and server.memory < 1.1*before, name
    assert ' ERROR ' not in server.log.read_text()


def test_who_leaves_is_not_worked_for(server):
    "A client that goes away while its pictures are decoded: the rest of them is left alone."
    body = body_of(*[png(4000, 3000, 2, 8)]*8)
    async def main():
        head = {'Content-Type':'application/json'}
        async with httpx.AsyncClient(base_url=server.url, headers=head, timeout=.3) as client:
            for _ in range(8):
                try: await client.post(CHAT, content=body)
                except httpx.ReadTimeout: pass
    before = server.log.read_text().count(' 200 ')
    asyncio.run(main())
    with httpx.Client(base_url=server.url, timeout=60) as client:
        seconds = until(lambda: ' 499 ' in server.log.read_text() and not client.get('/health').json()['running'], 60)
    print(f'the first was given up after {seconds:.2f} s')
    assert server.log.read_text().count(' 200 ') - before < 8
