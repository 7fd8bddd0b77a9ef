"The page of labels as a person uses it: a real Chromium, a real server, a kill in the middle."
import json, os, signal, subprocess, sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from browsing import HOSTILE, browser_page, expect, inert, png, shot

pytest.importorskip('fastapi', reason="no fastapi: pip install 'aligngpt[serve]'")
pytestmark = pytest.mark.browser
root = Path(__file__).resolve().parents[2]


@contextmanager
def label(folder, *arguments):
    "Run `aligngpt label` in `folder`; yields its process and the address of its page."
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    line = [sys.executable, '-m', 'aligngpt.cli', 'label', 'levels.json', '--images', '.', '--who', 'anna', '--port', '0',
            *arguments]
    process = subprocess.Popen(line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        hello = process.stdout.readline()
        assert 'page http' in hello, process.stderr.read()
        yield process, hello.split('page ')[1].strip()
    finally:
        process.kill()
        process.communicate()


def said(folder):
    "The answers in the file, in order."
    lines = (folder/'levels.labels'/'anna.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line)['says'] for line in lines]


def test_labels(tmp_path):
    "Keys and buttons, hostile captions, a reload, a kill, and what comes out in the end."
    for i in range(len(HOSTILE)): (tmp_path/f'{i}.png').write_bytes(png((10*i, 80, 220)))
    (tmp_path/'levels.json').write_text(json.dumps([dict(image=f'{i}.png', similarity=i % 4, conversations=[
        {'from': 'human', 'value': '<image>'}, {'from': 'gpt', 'value': text}]) for i,text in enumerate(HOSTILE)]))
    n = len(HOSTILE)
    with browser_page('labels') as page:
        def done(k): page.get_by_text(f'{k} of {n}, anna').wait_for()
        def press(key, k): page.keyboard.press(key); done(k)
        with label(tmp_path) as (process, at):
            page.goto(at)
            done(0)
            assert page.locator('img').evaluate('e => e.complete && e.naturalWidth') == 64
            expect(page.locator('.agpt-label p').first.inner_text().strip()[:20], '\n'.join(HOSTILE))
            press('1', 1); press('2', 2); press('3', 3); press('u', 2); press('s', 3)
            page.get_by_role('button', name='names it (1)').click()
            done(4)
            shot(page, 'labels_pair')
            assert said(tmp_path) == ['names', 'partly', 'no', 'undo', 'skip', 'names']
            page.reload()
            done(4)
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.keyboard.press('1')
            page.get_by_text('the server is gone').wait_for()
        with label(tmp_path) as (process, at):
            page.goto(at)
            done(4)
            for k in range(5, n): press('jkl'[k % 3], k); inert(page, '#pair') if k % 7 == 0 else None
            page.keyboard.press('1')
            page.get_by_text('best threshold by F1').wait_for()
            inert(page, '#pair')
            assert not page.errors, page.errors
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            expect('best threshold by F1', out)
    assert (tmp_path/'levels.labels'/'report.html').exists()
