"""The whole site, built twice from this checkout and looked at in a browser."""
import filecmp, functools, http.server, os, re, subprocess, sys, threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FINDS = dict(tutorial='start.html', install='guides/install.html', scorer='guides/evaluation.html',
             **{'multi-GPU': 'guides/training.html'}, equation='method.html') # what is searched, and found first


def build(where):
    "Build the site of a copy of the checkout; its folder."
    copy = ['git', 'clone', '-q', str(ROOT), str(where)]
    subprocess.run(copy, check=True)
    subprocess.run([sys.executable, '-m', 'aligngpt.book.docs'], cwd=where, check=True,
                   env={**os.environ, 'PYTHONPATH': str(where)})
    return where/'_docs'


@pytest.fixture(scope='module')
def site(tmp_path_factory): return build(tmp_path_factory.mktemp('site')/'one')


def test_no_page_has_an_address_of_memory(site):
    for page in site.rglob('*.html'):
        text = re.sub(r'<[^>]*>', '', page.read_text(encoding='utf-8'))
        assert not (found := re.search(r'.{40} at 0x[0-9a-f]{4}', text)), (page, found)


def test_two_builds_are_equal(site, tmp_path):
    other = build(tmp_path/'two')
    files = [f.relative_to(site) for f in sorted(site.rglob('*')) if f.is_file()]
    dated = {Path('sitemap.xml'), Path('sitemap.xml.gz')} # the day
    _, differ, missing = filecmp.cmpfiles(site, other, [f for f in files if f not in dated], shallow=False)
    assert not differ and not missing


def test_few_entries_lead(site):
    home = (site/'index.html').read_text(encoding='utf-8')
    tabs = re.findall(r'<li class="md-tabs__item', home)
    assert 4 <= len(tabs) <= 8


@pytest.fixture(scope='module')
def address(site):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()


@pytest.mark.parametrize('word', FINDS)
def test_search_finds_the_page_first(address, word):
    from browsing import browser_page
    with browser_page('search') as page:
        page.goto(f'{address}/index.html')
        page.keyboard.press('/')
        page.keyboard.type(word, delay=30)
        first = page.locator('.md-search-result__link').first
        first.wait_for()
        page.wait_for_timeout(1500)
        assert FINDS[word] in first.get_attribute('href'), first.inner_text()


PAGES = 'index', 'start', 'method', 'guides/training', 'reference/commands/finetune', 'quickstart/run'


@pytest.mark.parametrize('name', PAGES)
def test_nothing_is_wider_than_a_phone(address, name):
    from browsing import browser_page
    with browser_page('phone') as page:
        page.set_viewport_size(dict(width=390, height=844))
        page.goto(f'{address}/{name}.html')
        assert page.evaluate('document.documentElement.scrollWidth') <= 390


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_everybody_can_read_it(address, scheme):
    from browsing import browser_page, faults_of
    with browser_page('axe', color_scheme=scheme) as page:
        for name in PAGES:
            page.goto(f'{address}/{name}.html')
            page.wait_for_timeout(500)
            assert not (found := faults_of(page)), (name, found)
