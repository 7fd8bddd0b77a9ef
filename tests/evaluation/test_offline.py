"Twelve of twelve numbers with the network off, from files that can still be had."
import os, socket
from pathlib import Path

import pytest

from aligngpt.evaluation.judge import Replies
from aligngpt.evaluation.tasks import GRADERS, TASKS, score

ROOT = Path(os.environ.get('ALIGNGPT_BENCHMARKS') or Path(__file__).resolve().parents[3]/'shared'/'benchmarks')
NAMES = [n for n in TASKS if n != 'easy_vqa']


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Every address is out of reach."
    def refuse(*args, **kwargs): raise AssertionError(f'the network was asked for: {args[1:]}')
    for name in ('connect', 'connect_ex'): monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def recorded(folder):
    "What a judge said, where the folder has that."
    path = next(iter(sorted(folder.glob('judge_replies.*'))), None)
    return Replies.read(path) if path else None

def test_there_are_twelve(): assert len(NAMES) == 12 and GRADERS.keys() <= set(NAMES)

@pytest.mark.skipif(not ROOT.is_dir(), reason=f'no golden benchmark cases in {ROOT}: set ALIGNGPT_BENCHMARKS')
@pytest.mark.parametrize('name', NAMES)
def test_a_number_without_the_network(name):
    report = score(name, ROOT/name, ROOT/name/'predictions.jsonl', judge=recorded(ROOT/name))
    assert report.headline is not None and report.status == 'scored'
    of_another_split = name in ('vqav2', 'vizwiz')
    assert (report.title != TASKS[name].title) == of_another_split # an offline number has a name of its own
    assert bool(report.published) != of_another_split              # and no published figures beside it
