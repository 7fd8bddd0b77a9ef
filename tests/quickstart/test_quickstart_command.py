"""`aligngpt quickstart` as a command: whole, again, stopped in every step and continued, twice at once; then asked
about pictures."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
from aligngpt.core.files import read_json
from world import differing

root = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, PYTHONPATH=str(root), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
PATIENCE = 3600 # seconds; a busy machine takes its time


def command(*args, patience=PATIENCE):
    "A command to its end."
    return subprocess.run([sys.executable, *map(str, args)], env=ENV, capture_output=True, text=True,
                          timeout=patience)

def metrics(run):
    "What was measured."
    return read_json(run/'report'/'metrics.json')


def test_whole(rehearsal, tmp_path):
    "It leaves metrics, a report and a model; the same call again finds all done, and a folder belongs to one recipe."
    from aligngpt.checkpoints.layouts import load
    from aligngpt.quickstart.stages import REHEARSAL
    from aligngpt.checkpoints.zoo import count_parameters, get_preset
    said = (rehearsal/'said.txt').read_text()
    assert 'aligngpt chat' in said and 'report.html' in said, said
    m = metrics(rehearsal)
    assert m['questions'] == REHEARSAL.test_questions and m['spearman'] > .2 and m['accuracy'] > .1, m
    for name in ('report/report.html', 'report/report.md', 'quickstart.yaml', 'report/figures/the-knob.png',
                 'model/config.json', 'model/model.safetensors'):
        assert (rehearsal/name).exists(), name
    assert count_parameters(load(rehearsal/'model')[0].config) == get_preset('tiny').parameters
    run = shutil.copytree(rehearsal, tmp_path/'run')
    again = command('-m', 'aligngpt.cli', 'quickstart', '--rehearse', '--out', run)
    assert again.stderr.count('unchanged') == 13 and metrics(run) == m, again.stderr
    other = command('-m', 'aligngpt.cli', 'quickstart', '--rehearse', '--out', run, '--seed', 1)
    assert 'holds a run with seed = 0, not 1' in other.stderr, other.stderr


@pytest.mark.slow
def test_one_way(rehearsal, tmp_path):
    "`aligngpt run` of its file leaves the same bytes; a change makes again what depends on it, beside the first."
    run = tmp_path/'run'
    run.mkdir()
    shutil.copy(rehearsal/'quickstart.yaml', run)
    assert command('-m', 'aligngpt.cli', 'run', run/'quickstart.yaml').returncode == 0
    assert [f for f in differing(rehearsal, run) if f != 'said.txt'] == []
    dry = command('-m', 'aligngpt.cli', 'run', run/'quickstart.yaml', '--dry-run', '--set', 'levels.method=uniform')
    states = dict(line.split()[:2] for line in dry.stdout.splitlines()[1:])
    assert [k for k, v in states.items() if v == 'done'] == ['data', 'examples', 'clip', 'llm'], dry.stdout


@pytest.mark.slow
def test_interrupted(rehearsal, tmp_path):
    """Ctrl-C in each of the steps; the same command goes on, and ends with the numbers of a run in peace.

    A second one is sent away meanwhile."""
    done = command(root/'tests'/'interrupted.py', tmp_path/'run', tmp_path/'result.json')
    assert done.returncode == 0, done.stderr[-3000:]
    starts = {s['name']: s for s in json.loads((tmp_path/'result.json').read_text())}
    second, last = starts.pop('second'), starts.pop('none')
    assert second['code'] == 1 and 'another command is using' in second['err'], second
    for name, s in starts.items():
        assert s['code'] == 130 and 'interrupted' in s['err'], s
        assert s['finished'] == (name == 'report'), s # the metrics come before the figures
    assert not any('Traceback' in s['err'] for s in (second, last, *starts.values()))
    assert len(starts) == 8 and last['code'] == 0, last
    assert metrics(tmp_path/'run') == metrics(rehearsal)


def test_talk(rehearsal, tmp_path):
    "Ask about a test picture, and about a PNG of one's own."
    from PIL import Image
    from aligngpt.quickstart.easyvqa import folder
    Image.new('RGBA', (300, 200), (255, 0, 0, 128)).save(tmp_path/'own.png')
    for picture in (folder('test')/'0.png', tmp_path/'own.png'):
        asked = '--image', picture, '--question', 'what color is the shape?', '--temperature', 0
        done = command('-m', 'aligngpt.cli', 'chat', rehearsal, *asked)
        assert done.returncode == 0 and done.stdout.strip() and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.slow
def test_bars(tmp_path):
    "The whole quickstart, in minutes: what the README promises."
    run = tmp_path/'run'
    done = command('-m', 'aligngpt.cli', 'quickstart', '--out', run, patience=4*PATIENCE)
    assert done.returncode == 0, done.stderr
    m = metrics(run)
    assert m['questions'] == 9673 and m['accuracy'] >= .95, m['by_kind']
    assert m['spearman'] >= .8
    assert m['knob']['7']['both'] >= .9, m['knob']
