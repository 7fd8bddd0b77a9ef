"The page with the model in it, in a real Chromium, against the model in Python."
import base64, functools, json, random, threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from browsing import HOSTILE, browser_page, inert, png, shot

for name in ('onnx', 'onnxscript', 'onnxruntime'):
    pytest.importorskip(name, reason=f"no {name}: pip install 'aligngpt[onnx]'")
pytestmark = pytest.mark.browser

from PIL import Image, ImageDraw

from aligngpt.checkpoints.layouts import save
from aligngpt.core.errors import AlignGPTError
from aligngpt.exports.browser import write_browser, write_runtime
from aligngpt.exports.onnx import greedy_answer
from aligngpt.model.toy import COLOURS, QUESTIONS, swatch, toy


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


@contextmanager
def served(folder):
    "The address of a folder, and what was asked of it."
    server = ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=folder))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}/index.html', server.asked
    finally:
        server.shutdown()
        server.server_close()


def drawing(rng):
    "A picture of any shape, so that it is padded and made smaller or larger."
    size = rng.randint(20, 300), rng.randint(20, 300)
    im = Image.new('RGB', size, COLOURS[rng.choice(list(COLOURS))])
    draw = ImageDraw.Draw(im)
    for _ in range(rng.randint(0, 3)):
        x, y = (rng.randrange(s) for s in size)
        draw.ellipse((x, y, x + 30, y + 20), fill=tuple(rng.randrange(256) for _ in range(3)))
    return im


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "The toy as a page; skipped where the packages it runs on are not to be had."
    tmp = tmp_path_factory.mktemp('page')
    try: write_runtime(tmp/'runtime')
    except AlignGPTError as e: pytest.skip(f'no packages from the npm registry: {e}')
    for i, c in enumerate(COLOURS): swatch(c).save(tmp/f'{i}.png')
    save(*toy(), tmp/'toy')
    write_browser(tmp/'toy', tmp/'page', sorted(tmp.glob('*.png')), [*QUESTIONS[:2], HOSTILE[0]])
    return tmp/'page'


ANSWER = '''async asked => {
    const {Model, decode} = await import('./model.js')
    window.live ??= Model.load(RECORDED.files)
    const model = await window.live, out = []
    for (const [url, question, level] of asked) {
        const picture = await decode(await (await fetch(url)).blob())
        const {text, weights, said} = await model.answer(picture, question, level, {longest: 32})
        out.push({text, weights, said, pixels: [...model.pixels(picture).data]})
    }
    return out
}'''


def data_url(im, file):
    im.save(file)
    return 'data:image/png;base64,' + base64.b64encode(Path(file).read_bytes()).decode()


def equal(page, model, processor, asked, tmp_path):
    "How many answers of the page are, token for token, those of the model."
    theirs = page.evaluate(ANSWER, [[data_url(im, tmp_path/'x.png'), q, level] for im,q,level in asked])
    same = 0
    for (im, q, level), got in zip(asked, theirs):
        batch, said, weights = greedy_answer(model, processor, im, q, level, 32)
        assert batch['pixel_values'].flatten().tolist() == got['pixels'], (im.size, q)
        assert weights.tolist() == pytest.approx(got['weights'], abs=1e-4)
        same += said == got['said']
    return same


def toy_questions(n):
    rng = random.Random(0)
    return [(drawing(rng), rng.choice([*QUESTIONS, '</s> <image> Was heißt 蓝色?']), rng.choice([None, *range(8)]))
            for _ in range(n)]


def connect(page, at):
    "Open the page without its rule against `data:` addresses, which the tests bring their pictures in."
    page.route('**/index.html', lambda route: route.fulfill(response=(got := route.fetch()),
                                                            body=got.text().replace("connect-src 'self'", 'connect-src *  data:')))
    page.goto(at)


def test_equal(folder, tmp_path):
    "Twenty answers, pixels and weights."
    with browser_page('live_equal', service_workers='block') as page, served(folder) as (at, _):
        connect(page, at)
        assert equal(page, *toy(), toy_questions(20), tmp_path) == 20


@pytest.mark.slow
def test_equal_200(folder, tmp_path):
    "Two hundred."
    with browser_page('live_equal_200', service_workers='block') as page, served(folder) as (at, _):
        connect(page, at)
        assert equal(page, *toy(), toy_questions(200), tmp_path) == 200


def test_page(folder, tmp_path):
    "A person's way: the first answer, another picture, the slider by keyboard, an own picture, a hostile question."
    with browser_page('live_page') as page, served(folder) as (at, asked):
        page.goto(at)
        live = page.locator('#answer[data-live]')
        live.wait_for()
        def said(text): page.wait_for_function('t => document.querySelector("#answer").textContent === t', arg=text)
        colours = list(COLOURS)
        said(f'It is **{colours[0]}**.')
        page.get_by_role('radio', name='Picture 3').check(force=True)
        said(f'It is **{colours[2]}**.')
        slider = page.get_by_role('slider', name='Level')
        assert slider.get_attribute('aria-valuetext') == 'auto: the gate decides'
        slider.press('Home')
        assert slider.get_attribute('aria-valuetext') == 'level 0'
        page.wait_for_function('document.querySelector("#bars").getAttribute("aria-label").includes("0: 1.00")')
        slider.press('End')
        page.context.set_offline(True)
        page.set_input_files('#file', dict(name='x.png', mimeType='image/png', buffer=png(COLOURS['blue'], 200)))
        said('It is **blue**.')
        page.get_by_label('Question', exact=True).fill('Is it warm or cool?')
        page.get_by_label('Question', exact=True).press('Enter')
        said('Cool, since it is **blue**.')
        page.get_by_role('button', name=HOSTILE[0]).click()
        inert(page, '#form')
        page.context.set_offline(False)
        assert not page.errors and not page.abroad
        assert all(p.startswith(('/model/', '/runtime/', '/pictures/')) or p[1:] in
                   ('', 'index.html', 'page.css', 'page.js', 'model.js', 'recorded.js', 'offline.js') for p in asked), asked
        for width, height in ((1280, 800), (390, 844)):
            page.set_viewport_size(dict(width=width, height=height))
            assert page.evaluate('document.documentElement.scrollWidth') <= width
            shot(page, f'live_{width}')


def test_offline(folder):
    "A page that was there once opens without a server."
    with browser_page('live_offline') as page:
        with served(folder) as (at, _):
            page.goto(at)
            page.locator('html[data-kept]').wait_for()
        page.reload()
        page.locator('#answer[data-live]').wait_for()
        assert page.locator('#status').text_content() == 'The model runs in this page.'


@pytest.mark.parametrize('how', ['no WebAssembly', 'a file', 'a piece is missing'])
def test_recorded(folder, how, tmp_path):
    "Where the model cannot run, the recorded answers are shown, and why."
    with browser_page('live_recorded', service_workers='block') as page, served(folder) as (at, _):
        if how == 'no WebAssembly': page.add_init_script('delete window.WebAssembly')
        if how == 'a piece is missing': page.route('**/decoder.onnx', lambda route: route.fulfill(body=b'half'))
        page.goto(f'file://{folder}/index.html' if how == 'a file' else at)
        why = {'no WebAssembly':'no WebAssembly', 'a file':'python3 -m http.server', 'a piece is missing':'4 bytes, not'}
        page.get_by_text(why[how]).wait_for()
        assert page.locator('#own').is_hidden()
        answers = json.loads((folder/'recorded.js').read_text().removeprefix('const RECORDED = '))['answers']
        page.get_by_role('radio', name='Picture 2').check(force=True)
        page.get_by_role('button', name=QUESTIONS[1]).click()
        page.get_by_role('slider', name='Level').fill('3')
        assert page.locator('#answer').text_content() == answers['1|1']['said'][3]
        assert not page.errors
