"The widget's own page, without JupyterLab: what axe says, what a phone shows, and what becomes of a file that is no picture."
import json

import pytest

from browsing import browser_page, faults_of, png, shot

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>widget</title>
<meta name=viewport content="width=device-width"><style>:root{color-scheme:light dark}
body{margin:8px;background:#fff;color:#222} @media (prefers-color-scheme:dark){body{background:#111;color:#e4e6ea}}
CSS</style><main id=here></main><script type=module>
STATE.on = (k, f) => {}; STATE.send = m => { window.sent = m };
const url = URL.createObjectURL(new Blob([CODE], {type: 'text/javascript'}));
const { default: widget } = await import(url);
widget.render({ model: STATE, el: document.getElementById('here') });
document.body.dataset.ready = 1;
</script></html>"""


def widget_page(folder):
    "The front end with a short conversation."
    from PIL import Image
    from aligngpt.chat import widget as w
    from aligngpt.chat.reader import Answer, Turn
    weights = [.1, .2, .05, .05, .3, .1, .2, 1.]
    answer = Answer('It is **blue**.', weights=weights, tokens=5)
    log = [w.question_html(Turn('What colour is it?', [Image.new('RGB', (64, 64), 'blue')])), w.answer_html(answer)]
    shown = [dict(url=w.thumb_url(im, 128), question=q) for im,q in w.drawn_examples('runs/7b')]
    held = json.dumps(dict(log=log, live='', busy=False, examples=shown, hint='Show a picture and ask about it.'))
    code = json.dumps((w._HERE/'widget.js').read_text()).replace('</', r'<\/')
    state = f'const held = {held}, state = {{ get: k => held[k] }};'.replace('</', r'<\/')
    text = PAGE.replace('CSS', w.CSS, 1).replace('STATE.on', f'{state} STATE.on').replace('STATE', 'state')
    (folder/'widget.html').write_text(text.replace('CODE', code), encoding='utf-8')
    return folder/'widget.html'


def test_widget_alone(tmp_path):
    with browser_page('widget_alone') as page:
        page.goto(widget_page(tmp_path).as_uri())
        page.locator('body[data-ready]').wait_for()
        for scheme in ('light', 'dark'):
            page.emulate_media(color_scheme=scheme)
            assert faults_of(page) == [], scheme
            shot(page, f'widget_{scheme}')
        page.set_viewport_size(dict(width=390, height=844))
        assert page.evaluate('document.documentElement.scrollWidth') <= 390
        shot(page, 'widget_phone')

        page.locator('.agpt-examples button').first.click()
        assert page.locator('textarea').input_value() == 'What colour is the circle?'
        assert page.locator('.agpt-tray img').count() == 1
        for name, data in (('letter.txt', b'Dear Sir'), ('letter.png', b'Dear Sir'), ('red.png', png('red'))):
            (tmp_path/name).write_bytes(data)
        page.locator('input[type=file]').set_input_files([tmp_path/n for n in ('letter.txt', 'letter.png', 'red.png')])
        page.locator('.agpt-tray em', has_text='letter.png').wait_for() # its name, and no broken tile
        assert 'letter.txt: not a picture' in page.locator('.agpt-said').inner_text()
        page.wait_for_function('''() => {
            const shown = [...document.querySelectorAll('.agpt-tray img')];
            return shown.length === 2 && shown.every(e => e.complete && e.naturalWidth > 0);
        }''')
        shot(page, 'widget_tray')
        assert page.errors == []
