"""`aligngpt quickstart --recipe drawings` as a command: what is missing is said, and a rehearsal with the real parts."""
import json, os, subprocess, sys
from pathlib import Path

import pytest

from aligngpt.core.errors import AlignGPTError
from aligngpt.quickstart.drawings import Ingredients
from aligngpt.core.files import read_json

root = Path(__file__).resolve().parents[2]
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), HF_HUB_OFFLINE='1')
PLACE = Path(os.environ.get('ALIGNGPT_DRAWINGS', '/usr/share/openclipart'))


def command(*args, patience=3600):
    "A command to its end."
    return subprocess.run([sys.executable, '-m', 'aligngpt.cli', *map(str, args)], env=ENV, capture_output=True,
                          text=True, timeout=patience)

def missing():
    "Why the real parts cannot be used; '' if they are there."
    try: Ingredients(PLACE).find()
    except AlignGPTError as e: return e.message
    return ''


def test_missing(tmp_path):
    "One line names what is not installed, another the commands that install it; nothing is made."
    done = command('quickstart', '--recipe', 'drawings', '--drawings', tmp_path/'gone', '--out', tmp_path/'run')
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert any(l.startswith('error: not installed: openclipart-png, openclipart-svg') for l in lines), lines
    assert 'apt-get install openclipart-png openclipart-svg' in lines[-1], lines
    assert not (tmp_path/'run').exists()
    assert command('quickstart', '--recipe', 'words').returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing() or 'all is there')
def test_rehearsal(tmp_path):
    "All steps with the real drawings and SmolLM2, and a talk."
    run = tmp_path/'run'
    done = command('quickstart', '--recipe', 'drawings', '--drawings', PLACE, '--rehearse', '--out', run)
    assert done.returncode == 0, done.stderr[-3000:]
    m = read_json(run/'metrics.json')
    assert m['pictures'] == 8121 and len(m['left_out']) == 16
    assert m['talk']['pretrained'] == 1 # the bare model's words
    card = (run/'model'/'README.md').read_text()
    assert 'apache-2.0' in card and 'cc0-1.0' in card and 'Open Clip Art Library' in card, card
    asked = '--image', PLACE/'png'/'animals'/'mammals'/'dogs'/'bored_dog_01.png', '--question', 'What is this?'
    for level in ((), ('--level', 0), ('--level', 7)):
        said = command('chat', run, *asked, '--max-tokens', 8, *level)
        assert said.returncode == 0 and said.stdout.strip(), said.stderr
