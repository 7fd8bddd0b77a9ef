"The web page as a person uses it: a real Chromium, a real server."
import pytest

from browsing import HOSTILE, browser_page, expect, faults_of, inert, png, shot

pytest.importorskip('gradio', reason="no gradio: pip install 'aligngpt[serve]'")
from served import save_runs, serve, until

pytestmark = pytest.mark.browser


class WebPage:
    "What a person sees and can do."
    def __init__(self, page):
        self.page, self.box, self.bars = page, page.locator('textarea'), page.locator('#weights .agpt-bars')
        self.answers = page.locator('#conversation .bot.message')

    def upload(self, folder, name, data):
        (folder/name).write_bytes(data)
        with self.page.expect_file_chooser() as chooser: self.page.get_by_test_id('upload-button').click()
        chooser.value.set_files(folder/name)

    def say(self, text):
        self.page.locator('button.submit-button').wait_for() # the last answer is whole
        self.box.fill(text); self.box.press('Enter')

    def hear(self, n, text): self.answers.nth(n).filter(has_text=text).wait_for()

    def press(self, name): self.page.get_by_role('button', name=name, exact=True).last.click()

    def stop(self): self.page.locator('button.stop-button').click()


def test_page(tmp_path):
    "Upload, ask, stream, force a level, answer anew, stop half-way, go on, make mistakes; nobody else is asked for anything."
    hold = tmp_path/'hold'
    with serve(tmp_path) as server, browser_page('page') as page:
        page.goto(server.url)
        web = WebPage(page)
        web.box.wait_for()
        web.upload(tmp_path, 'blue.png', png((50, 80, 220)))
        page.locator('.thumbnail-item').wait_for()
        web.say('What colour is it?')
        web.hear(0, 'It is blue.')
        assert web.answers.locator('strong').inner_text() == 'blue'
        page.locator('#weights .agpt-foot', has_text='gate').wait_for()
        assert web.bars.locator('span').count() == 8
        shot(page, 'page_answer')

        page.locator('#ask-why').click()
        levels = page.locator('.agw-map')
        levels.wait_for()
        assert levels.evaluate('t => t.scrollWidth <= t.parentElement.clientWidth'), 'a level is out of sight'
        levels.scroll_into_view_if_needed()
        shot(page, 'page_why')

        page.locator('#level').get_by_text('2', exact=True).click()
        web.press('Retry')
        page.locator('#weights .agpt-foot', has_text='level 2').wait_for()
        expect('level 2 1.00', web.bars.get_attribute('aria-label'))
        assert web.answers.count() == 1

        hold.touch()
        web.say('Count to ten.')
        web.hear(1, 'three,')
        shot(page, 'page_streaming')
        web.stop()
        page.locator('button.submit-button').wait_for()
        hold.unlink()
        page.wait_for_timeout(500)
        assert web.answers.nth(1).inner_text().strip() == 'one, two, three,', 'stopped half-way'
        web.press('Retry')
        web.hear(1, 'ten.')
        page.emulate_media(color_scheme='dark')
        web.say('Describe it.')
        web.hear(2, 'the sea')
        assert web.answers.nth(2).locator('li').count() == 2

        web.upload(tmp_path, 'letter.png', b'Dear Sir or Madam')
        page.get_by_text('not an image').first.wait_for()
        assert 'hint:' not in page.locator('.toast-body').first.inner_text()
        assert page.locator('.thumbnail-item').count() == 0 # no broken tile
        page.wait_for_timeout(500) # it slides in
        shot(page, 'page_error')
        web.say('Count to ten.')
        web.hear(3, 'ten.')
        def kept(): return list(tmp_path.glob('tmp*/*/picture.png'))
        assert len(kept()) == 1 # the letter is not there
        page.goto(server.url + '/page/?__theme=dark')
        web.box.wait_for()
        until(lambda: not kept(), 60) # the conversation is over, and its picture has gone
        web.say('Count to ten.')
        web.hear(0, 'ten.')
        shot(page, 'page_dark')
        assert (page.errors, page.abroad, (tmp_path/'abroad').read_text()) == ([], [], '')


@pytest.mark.slow
def test_hostile_page(tmp_path):
    "A model that says an enemy's words: none of them is more than text. (What people type, they do to themselves.)"
    says = '\n\n'.join(sorted(HOSTILE, key=lambda t: '```' in t)) # the fence would cover what follows
    with serve(tmp_path, env=dict(ALIGNGPT_SAYS=says)) as server, browser_page('hostile_page') as page:
        page.goto(server.url)
        web = WebPage(page)
        web.box.wait_for()
        web.say('Hello.')
        web.hear(0, 'onerror')
        inert(page, '#conversation')
        shot(page, 'hostile_page')


@pytest.mark.slow
def test_everybody_can_use_it(tmp_path):
    "Pictures to click for any model, nothing serious for axe in light and dark, and a phone begins with the conversation."
    save_runs(tmp_path)
    with (serve(tmp_path, 'toy', '--temperature', '0', env=dict(GRADIO_TEMP_DIR=str(tmp_path/'kept'))) as server,
          browser_page('readable') as page):
        for scheme in ('light', 'dark'):
            page.set_viewport_size(dict(width=1280, height=1000))
            page.goto(f'{server.url}/page/?__theme={scheme}')
            page.locator('#example-0').click()
            page.locator('.thumbnail-item img').wait_for()
            page.locator('textarea').press('Enter')
            page.locator('#weights .agpt-foot', has_text='gate').wait_for()
            page.locator('.agpt-key summary').click()
            page.wait_for_timeout(1000)
            shot(page, f'page_{scheme}')
            assert faults_of(page) == [], scheme
            page.set_viewport_size(dict(width=390, height=844))
            page.goto(f'{server.url}/page/?__theme={scheme}')
            page.locator('textarea').wait_for()
            page.locator('.sidebar:not(.open)').wait_for()
            assert page.evaluate('document.documentElement.scrollWidth') <= 390
            shot(page, f'page_phone_{scheme}')
            assert faults_of(page) == [], scheme
            page.locator('.sidebar .toggle-button').click()
            page.locator('.sidebar.open').wait_for()
            page.locator('#example-0').click()
            page.locator('.sidebar:not(.open)').wait_for() # what was chosen is seen
            page.locator('.thumbnail-item img').wait_for()


def test_examples(tmp_path):
    "A run brings pictures along; a click puts one into the box, with its question."
    save_runs(tmp_path)
    (tmp_path/'toy'/'examples').mkdir()
    (tmp_path/'toy'/'examples'/'blue.png').write_bytes(png((50, 80, 220)))
    (tmp_path/'toy'/'examples'/'questions.json').write_text('{"blue.png": "What colour is it?"}')
    with (serve(tmp_path, 'toy', '--temperature', '0', env=dict(GRADIO_TEMP_DIR=str(tmp_path/'kept'))) as server,
          browser_page('page') as page):
        page.goto(server.url)
        web = WebPage(page)
        page.locator('#example-0').click()
        page.locator('.thumbnail-item img').wait_for()
        page.wait_for_function("document.querySelector('.thumbnail-item img').naturalWidth > 0")
        assert web.box.input_value() == 'What colour is it?'
        shot(page, 'page_examples')
        web.say('What colour is it?')
        web.hear(0, 'blue')
        page.reload()
        page.locator('#example-0').wait_for()
        assert page.locator('#examples button').count() == 1
        assert (page.errors, page.abroad) == ([], [])
