"One evaluation looks its task up once, finds its files once, and reads its questions once."
import json, sys
from collections import Counter

import pytest

from aligngpt.evaluation.questions import Files, read_questions
from aligngpt.evaluation.results import evaluate_all
from aligngpt.evaluation.run import evaluate
from aligngpt.evaluation.tasks import get_task
from aligngpt.model.toy import swatch, toy

WATCHED = get_task, Files.__init__, read_questions


def counted(f):
    "How often each watched function is called while `f` runs."
    names, got = {g.__code__: g.__qualname__ for g in WATCHED}, Counter()
    def note(frame, event, arg):
        if event == 'call' and frame.f_code in names: got[names[frame.f_code]] += 1
    sys.setprofile(note)
    try: f()
    finally: sys.setprofile(None)
    return dict(got)


@pytest.fixture
def place(tmp_path):
    "Two questions about a picture, as a file of our own and as MME with its labels."
    images = tmp_path/'MME'/'MME_Benchmark_release_version'/'color'
    images.mkdir(parents=True)
    swatch('red').save(images/'1.jpg')
    (images/'1.txt').write_text('Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n')
    for name, where in (('own.jsonl', 'MME/MME_Benchmark_release_version/'), ('MME/llava_mme.jsonl', '')):
        rows = [dict(question_id='color/1.jpg' if 'mme' in name else c, image=f'{where}color/1.jpg', answer=a,
                     category='color', text=f'Is it {c}?\nAnswer the question using a single word or phrase.')
                for c,a in (('red', 'yes'), ('blue', 'no'))]
        (tmp_path/name).write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return tmp_path


@pytest.mark.parametrize('limit', [None, 2])
@pytest.mark.parametrize('task', ['own.jsonl', 'mme'])
def test_once(place, task, limit):
    "`evaluate`, and `evaluate_all` with its page of errors."
    task = place/task if task.endswith('.jsonl') else task
    once = dict.fromkeys((g.__qualname__ for g in WATCHED), 1)
    settings = dict(limit=limit, quiet=True, lenient=True)
    assert counted(lambda: evaluate(*toy(), task, place, place/'a', **settings)) == once
    assert counted(lambda: evaluate_all(*toy(), {task: place}, place/'b', tell=lambda line: None, **settings)) == once


def test_a_pair_is_not_divided(place):
    "MME scores two questions about a picture together, so a limit of one asks both."
    report = evaluate(*toy(), 'mme', place, place/'a', limit=1, quiet=True, lenient=True)
    assert len((place/'a'/'mme'/'answers.jsonl').read_text().splitlines()) == 2
    assert 0 <= report.results['categories']['color']['score'] <= 200
    assert report.headline is None # nine of the ten subtasks are not there
