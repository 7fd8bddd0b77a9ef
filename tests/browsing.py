"""A real browser for the tests: Debian's Chromium, driven by Playwright; without one, the tests that import this
are skipped."""
import os, shutil
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

chromium = (os.environ.get('ALIGNGPT_CHROMIUM')
            or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None))
if chromium is None: pytest.skip('no Chromium: apt-get install chromium', allow_module_level=True)
playwright = pytest.importorskip('playwright.sync_api', reason='no playwright: pip install playwright')

FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()


def png(colour, side=64):
    "The bytes of a PNG of one colour."
    from PIL import Image
    out = BytesIO()
    Image.new('RGB', (side, side), colour).save(out, 'PNG')
    return out.getvalue()


@contextmanager
def browser_page(name, counts=lambda e: True, **options):
    """A page in a fresh browser, and a screenshot if something goes wrong.

    It keeps in `page.errors` those errors of scripts that count, in `page.abroad` addresses beyond this machine that
    it asked for.
    """
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        context = browser.new_context(viewport=dict(width=1280, height=1000),
                                      permissions=['clipboard-read', 'clipboard-write'], **options)
        context.set_default_timeout(300_000) # a busy machine takes its time
        page = context.new_page()
        page.errors, page.abroad = [], []
        page.on('pageerror', lambda e: page.errors.append(str(e)) if counts(e) else None)
        page.on('request', lambda r: None if r.url.startswith(('http://127.0.0.1:', 'data:', 'blob:'))
                else page.abroad.append(r.url))
        try: yield page
        except BaseException: shot(page, f'{name}_failed'); raise
        finally: browser.close()


def shot(page, name):
    "Keep a screenshot."
    folder = Path(os.environ.get('ALIGNGPT_ARTEFACTS') or 'artefacts')
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder/f'{name}.png')


def expect(what, got):
    "`what` must be in `got`."
    assert what in got, f'{what!r} not in {got!r}'


JS = 'window.top.hacked=1'
HOSTILE = [f'<script>{JS}</script>', f'<img src=x onerror="{JS}">',
           f'<iframe srcdoc="<script>{JS}</script>"></iframe>',
           f'[a link](javascript:{JS})', f'<a href="javascript:{JS}">a link</a>', f'<javascript:{JS}>',
           f'"><svg onload="{JS}">',
           f'[data](data:text/html,<script>opener.{JS}</script>)', '![a picture](http://example.com/x.png)',
           f"' autofocus onfocus='{JS}", f'<details open ontoggle="{JS}">more', f'*marked*{{: onclick="{JS}" }}',
           f'[ref][1]\n\n[1]: javascript:{JS}', f'```\n</code></pre></textarea></style></title><script>{JS}</script>',
           f'x | y |\n|---|---|\n| <img src=x onerror={JS}>', f'$\\href{{javascript:{JS}}}{{x}}$',
           '<style>*{display:none}</style>',
           '<base href="http://example.com/"><form action="http://example.com/"><button>send</button></form>',
           '<meta http-equiv=refresh content="0;url=http://example.com/">',
           '<link rel=stylesheet href="http://example.com/">']

def inert(page, scope='body'):
    "Nothing of `HOSTILE` was run, is there to be clicked, or asked another machine for anything."
    page.wait_for_timeout(500)
    bad = page.locator(scope).evaluate_all(r'''els => els.flatMap(e => [...e.querySelectorAll('*')]).flatMap(e => [
        ...(/^(script|iframe|object|embed|form|base|meta|link)$/i.test(e.tagName) ? [e.outerHTML] : []),
        ...(e.tagName === 'STYLE' && e.textContent.includes('*{display:none}') ? [e.outerHTML] : []),
        ...[...e.attributes].filter(a => /^(on|srcdoc)/i.test(a.name) || /^(href|src|action|xlink:href)$/i.test(a.name)
            && /^\s*(javascript:|vbscript:|data:(?!image\/(png|jpeg|gif|webp)))/i.test(a.value)).map(a => e.outerHTML)])''')
    assert bad == [], bad[:3]
    assert page.evaluate('window.hacked === undefined'), 'a script of others has run'
    assert page.abroad == []


def faults_of(page):
    "What axe calls serious or critical about a page, with the first place of each."
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='pip install axe-playwright-python')
    found = axe.Axe().run(page).response['violations']
    return [(v['id'], len(v['nodes']), v['nodes'][0]['html'][:200]) for v in found
            if v['impact'] in ('serious', 'critical')]
