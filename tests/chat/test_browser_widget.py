"The chat notebook as a person uses it: a real Chromium, a real JupyterLab, a real kernel."
import json, os, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from browsing import HOSTILE, browser_page, expect, inert, playwright, png, shot

pytestmark = pytest.mark.browser
root = Path(__file__).resolve().parents[2]
pytest.importorskip('jupyterlab', reason='no JupyterLab: pip install jupyterlab')

LAB = '--ip=127.0.0.1', '--IdentityProvider.token=T', '--allow-root'
BRAKE = """import time, pathlib
hold = pathlib.Path('hold')
def brake(*args): # an answer stays at its third token while the file is there
    while hold.exists() and chat.session.reply.answer.tokens >= 3: time.sleep(.02)
brake = model.language_model.register_forward_pre_hook(brake)
chat.clear(); chat.level.value = 'auto'"""


def code(source):
    return dict(cell_type='code', id=f'c{abs(hash(source)):x}'[:16], metadata={}, execution_count=None, outputs=[],
                source=source)


def braked_notebook(folder):
    "A copy of the chat notebook, with a brake on its model and cells to run meanwhile."
    nb = json.loads((root/'nbs'/'chat'/'03_widget.ipynb').read_text(encoding='utf-8'))
    nb['cells'] += map(code, (BRAKE, 'chat', 'print("other cell:", 6*7)'))
    (folder/'chat.ipynb').write_text(json.dumps(nb), encoding='utf-8')


def short_notebook(folder):
    "A notebook that holds a chat and nothing else."
    cells = map(code, ('from aligngpt.model.toy import COLOURS, swatch, toy\nfrom aligngpt.chat import Chat',
                       'chat = Chat(*toy(), temperature=0)\nchat'))
    meta = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    (folder/'chat.ipynb').write_text(json.dumps(dict(cells=list(cells), metadata=meta, nbformat=4, nbformat_minor=5)),
                                     encoding='utf-8')


@contextmanager
def serve(folder, *command, ready='/nowhere'):
    "A Jupyter server in `folder`; yields its address."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    settings = folder/'settings'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True, exist_ok=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false"}')
    env = dict(os.environ, PYTHONPATH=str(root), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1',
               JUPYTERLAB_SETTINGS_DIR=str(folder/'settings'), JUPYTER_RUNTIME_DIR=str(folder/'runtime'),
               JUPYTERLAB_WORKSPACES_DIR=str(folder/'workspaces'), IPYTHONDIR=str(folder/'ipython'))
    with open(folder/'server.log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-m', *command, f'--port={port}', '--no-browser'], cwd=folder,
                                  env=env, stdout=log, stderr=log)
        try:
            url, end = f'http://127.0.0.1:{port}', time.monotonic() + 600
            while True:
                try: urllib.request.urlopen(url + ready, timeout=60).close(); break
                except urllib.error.HTTPError: break # it is there, and does not know the address
                except OSError:
                    if server.poll() is not None or time.monotonic() > end:
                        pytest.fail((folder/'server.log').read_text()[-3000:])
                    time.sleep(.1)
            yield url
        finally:
            server.terminate()
            try: server.wait(10)
            except subprocess.TimeoutExpired: server.kill(); server.wait()


def widget_page():
    "A page where errors of our own script, which anywidget loads from a blob, count."
    return browser_page('widget', lambda e: 'blob:' in (e.stack or '') or 'anywidget' in (e.stack or ''))


LIVE = '.agpt:not(.agpt-static)' # a chat that can be used

def run_all(page, there):
    "Run the notebook, once its kernel is there, until `there` is; again if a slow Lab lost cells or a widget."
    accept = page.locator('.jp-Dialog .jp-mod-accept')
    def yes(): # to which kernel, and then to whatever else a slow Lab asks
        if accept.count(): accept.first.click()
    page.add_locator_handler(accept.first, yes, no_wait_after=True)
    for last in (False, False, True):
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        page.get_by_role('menuitem', name='Run', exact=True).click()
        page.get_by_text('Run All Cells', exact=True).click()
        try: return there.first.wait_for(timeout=300_000 if last else 60_000)
        except playwright.TimeoutError:
            if last: raise


class ChatPage:
    "What a person sees and can do."
    def __init__(self, page, view):
        self.page, self.view = page, view
        self.box, self.live = view.get_by_label('Message'), view.locator('.agpt-live .agpt-text')
        self.answers = view.locator('.agpt-model:not(.agpt-live)')

    def press(self, name): self.view.get_by_role('button', name=name, exact=True).last.click()

    def upload(self, folder, name, data):
        (folder/name).write_bytes(data)
        with self.page.expect_file_chooser() as chooser: self.press('Add a picture')
        chooser.value.set_files(folder/name)
        self.view.locator('.agpt-tray span').first.wait_for() # a picture, or the name of what is none

    def transfer(self, kind, selector, data):
        "Drop or paste a file."
        self.view.locator(selector).evaluate('''(el, [kind, data]) => {
            const t = new DataTransfer(), how = { bubbles: true, cancelable: true };
            t.items.add(new File([new Uint8Array(data)], kind + '.png', { type: 'image/png' }));
            el.dispatchEvent(kind === 'paste' ? new ClipboardEvent('paste', { clipboardData: t, ...how })
                                              : new DragEvent('drop', { dataTransfer: t, ...how }));
        }''', [kind, list(data)])
        self.view.locator('.agpt-tray img').first.wait_for()

    def say(self, text): self.box.fill(text); self.box.press('Enter')

    def ask(self, text):
        "Type, press Enter, wait for the whole answer."
        n = self.answers.count()
        self.say(text)
        return self.whole(n)

    def whole(self, n):
        "The text of the answer after the first `n`, once it is complete."
        self.view.get_by_role('button', name='Regenerate the answer').wait_for()
        answer = self.answers.nth(n)
        answer.locator('.agpt-foot').wait_for()
        return answer.locator('.agpt-text').inner_text()


def test_lab(tmp_path):
    "Run the notebook; upload, ask, stream, force a level, regenerate, stop, go on, make mistakes."
    braked_notebook(tmp_path)
    lab = serve(tmp_path, 'jupyterlab', '--ip=127.0.0.1', '--IdentityProvider.token=T', '--allow-root',
                ready='/api/status?token=T')
    with lab as url, widget_page() as page:
        page.goto(f'{url}/lab/tree/chat.ipynb?reset&token=T')
        run_all(page, page.locator(LIVE))
        page.get_by_text('other cell: 42').wait_for()
        chat = ChatPage(page, page.locator(LIVE).last)
        chat.box.scroll_into_view_if_needed()

        chat.upload(tmp_path, 'blue.png', png((50, 80, 220)))
        chat.say('What colour is it?')
        expect('It is blue.', chat.whole(0))
        assert chat.answers.locator('strong').inner_text() == 'blue'
        expect('gate', chat.answers.locator('.agpt-foot').inner_text())
        assert chat.answers.locator('.agpt-bars span').count() == 8
        shot(page, 'widget_answer')

        level = page.locator('.widget-slider', has_text='Alignment level').last
        level.locator('.noUi-handle').focus()
        for _ in range(3): page.keyboard.press('ArrowRight')
        level.locator('.widget-readout', has_text='2').wait_for()
        chat.press('Regenerate the answer')
        chat.answers.locator('.agpt-foot', has_text='level 2').wait_for()
        expect('level 2 1.00', chat.answers.locator('.agpt-bars').get_attribute('aria-label'))

        hold = tmp_path/'hold'
        hold.touch()
        chat.say('Count to ten.')
        chat.live.filter(has_text='three,').wait_for()
        shot(page, 'widget_streaming')
        chat.press('Stop the answer')
        assert chat.whole(1) == 'one, two, three,', 'stopped at once, though the model is in the middle of a step'
        expect('stopped', chat.answers.nth(1).locator('.agpt-foot').inner_text())
        hold.unlink()
        chat.press('Regenerate the answer')
        chat.answers.nth(1).filter(has_text='ten.').wait_for()
        shot(page, 'widget_regenerated')

        hold.touch()
        chat.say('Count to ten.')
        chat.live.filter(has_text='three,').wait_for()
        cell = page.locator('.jp-Notebook-cell', has_text='other cell').last
        cell.get_by_role('textbox').first.click()
        page.keyboard.press('End'); page.keyboard.type(' # again'); page.keyboard.press('Control+Enter')
        cell.locator('.jp-OutputArea-output', has_text='other cell: 42').wait_for()
        assert chat.live.count() == 1
        cell.get_by_role('textbox').first.click()
        page.keyboard.press('Control+End')
        page.keyboard.type('\nwhile hold.exists(): time.sleep(.1)')
        page.keyboard.press('Control+Enter')
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="busy"]').wait_for()
        chat.press('Stop the answer')
        assert chat.whole(2) == 'one, two, three,', 'stopped although a cell keeps the kernel busy'
        hold.unlink()
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        chat.press('Regenerate the answer')
        chat.answers.nth(2).filter(has_text='ten.').wait_for()

        chat.transfer('drop', '.agpt-log', png((220, 40, 40)))
        expect('It is red.', chat.ask('What colour is it?'))
        chat.transfer('paste', 'textarea', png((40, 180, 70)))
        expect('all green', chat.ask('Describe it.'))
        assert chat.answers.last.locator('li').count() == 2
        chat.view.locator('.agpt-examples button').nth(3).click()
        chat.box.press('Enter')
        expect('It is yellow.', chat.whole(5))
        chat.press('Copy the answer')
        assert page.evaluate('navigator.clipboard.readText()') == 'It is **yellow**.'

        chat.upload(tmp_path, 'letter.png', b'Dear Sir or Madam')
        chat.say('And this?')
        expect('letter.png: not an image', chat.view.get_by_role('alert').inner_text())
        page.wait_for_function('box => box.value', arg=chat.box.element_handle()) # the message comes after the alert
        assert chat.box.input_value() == 'And this?', 'a failed message is given back'
        shot(page, 'widget_error')
        chat.press('Remove letter.png')
        expect('one, two', chat.ask('Count to ten.'))

        page.get_by_role('menuitem', name='Settings', exact=True).click()
        page.get_by_text('Theme', exact=True).first.hover()
        page.get_by_text('JupyterLab Dark', exact=True).click()
        page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
        page.wait_for_timeout(1000)
        shot(page, 'widget_dark')
        chat.press('Clear the conversation')
        chat.view.locator('.agpt-hint').wait_for()
        assert page.errors == []


def short_talk(page, folder, name):
    "Upload a picture, ask, look."
    chat = ChatPage(page, page.locator('.agpt').last)
    chat.box.wait_for()
    chat.upload(folder, 'blue.png', png((50, 80, 220)))
    expect('It is blue.', chat.ask('What colour is it?'))
    assert chat.answers.locator('.agpt-bars span').count() == 8
    shot(page, f'widget_{name}')
    assert page.errors == []


def test_notebook(tmp_path):
    "The same widget in Notebook 7."
    pytest.importorskip('notebook', reason='no Notebook 7: pip install notebook')
    short_notebook(tmp_path)
    with serve(tmp_path, 'notebook', *LAB) as url, widget_page() as page:
        page.goto(f'{url}/notebooks/chat.ipynb?token=T')
        run_all(page, page.locator(LIVE))
        short_talk(page, tmp_path, 'notebook7')


def test_voila(tmp_path):
    "The same widget as a page of its own, in the dark."
    pytest.importorskip('voila', reason='no voila: pip install voila')
    short_notebook(tmp_path)
    with serve(tmp_path, 'voila', 'chat.ipynb', '--theme=dark') as url, widget_page() as page:
        page.goto(url)
        short_talk(page, tmp_path, 'voila')


def hostile_notebook(folder):
    "A notebook whose outputs are words of an enemy, in everything that shows itself."
    cells = map(code, (f"""import sys; sys.path[:0] = [{str(root/'tests')!r}, {str(root/'tests'/'core')!r}]
from pathlib import Path
from IPython.display import display
from test_browser_markup import shown
from aligngpt.model.toy import toy
from aligngpt.chat import Chat""",
"for o in shown(Path('.')): display({'text/html':o}, raw=True) if isinstance(o, str) else display(o)",
        "chat = Chat(*toy(), temperature=0)\nchat", "print('all is shown')"))
    meta = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    (folder/'chat.ipynb').write_text(json.dumps(dict(cells=list(cells), metadata=meta, nbformat=4, nbformat_minor=5)),
                                     encoding='utf-8')

def hostile_talk(page, name):
    "What is shown is inert, and so is what the chat shows of hostile questions."
    page.get_by_text('all is shown', exact=True).wait_for(timeout=600_000)
    chat = ChatPage(page, page.locator(LIVE).last)
    for n,text in enumerate(HOSTILE[:4]): chat.say(text); chat.whole(n)
    page.abroad = [a for a in page.abroad if 'example.com' in a] # voila's own page asks a CDN for its scripts
    inert(page, '.jp-OutputArea-output')
    expect('onerror', page.locator('.jp-OutputArea').nth(1).inner_text())
    shot(page, f'hostile_{name}')

@pytest.mark.slow
def test_hostile_lab(tmp_path):
    "Questions, answers and data of an enemy in JupyterLab, whose outputs are trusted."
    hostile_notebook(tmp_path)
    with serve(tmp_path, 'jupyterlab', *LAB, ready='/api/status?token=T') as url, widget_page() as page:
        page.goto(f'{url}/lab/tree/chat.ipynb?reset&token=T')
        run_all(page, page.locator(LIVE))
        hostile_talk(page, 'lab')

@pytest.mark.slow
def test_hostile_notebook(tmp_path):
    "The same in Notebook 7."
    pytest.importorskip('notebook', reason='no Notebook 7: pip install notebook')
    hostile_notebook(tmp_path)
    with serve(tmp_path, 'notebook', *LAB) as url, widget_page() as page:
        page.goto(f'{url}/notebooks/chat.ipynb?token=T')
        run_all(page, page.locator(LIVE))
        hostile_talk(page, 'notebook7')

@pytest.mark.slow
def test_hostile_voila(tmp_path):
    "The same as a page of its own."
    pytest.importorskip('voila', reason='no voila: pip install voila')
    hostile_notebook(tmp_path)
    with serve(tmp_path, 'voila', 'chat.ipynb') as url, widget_page() as page:
        page.goto(url)
        hostile_talk(page, 'voila')
