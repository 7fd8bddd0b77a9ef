"`aligngpt quickstart` as a person uses it: interrupted in every step and continued, given twice at once, and then asked about pictures."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent
ENV = dict(os.environ, PYTHONPATH=str(root), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
PATIENCE = 600 # seconds; a busy machine takes its time


def hear(): signal.signal(signal.SIGINT, signal.SIG_DFL) # a shell's background jobs are born deaf to Ctrl-C

def start(*args): return subprocess.Popen([sys.executable, '-m', 'aligngpt.cli', *map(str, args)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear)

def metrics(run):
    "What was measured, without the times."
    return {k: v for k, v in json.loads((run/'metrics.json').read_text()).items() if 'seconds' not in k}

def wait_for(process, text, lines):
    "Read the process's messages up to one with `text`; False if it ended before."
    for line in process.stderr:
        lines.append(line)
        if text in line: return True
    return False


def test_interrupted(tmp_path):
    "Ctrl-C in each of the steps; the same command goes on, ends with the numbers of a run in peace, and leaves a model to talk with."
    run, peace = tmp_path/'run', start('quickstart', '--rehearse', '--out', tmp_path/'peace')
    for step in ('[1/7]', '[2/7]', '[3/7]', '[4/7]', '[4/7] pre-training', '[5/7]', '[6/7]'):
        lines, p = [], start('quickstart', '--rehearse', '--out', run)
        assert wait_for(p, step, lines), ''.join(lines)
        time.sleep(.7)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=PATIENCE)
        assert p.returncode == 130, (step, ''.join(lines) + err)
        assert 'Traceback' not in err and 'interrupted' in err, (step, err)
        assert not (run/'metrics.json').exists()
    p = start('quickstart', '--rehearse', '--out', run)
    out, err = p.communicate(timeout=PATIENCE)
    assert p.returncode == 0, err
    assert 'aligngpt chat' in out and 'report.html' in out, out
    out, err = peace.communicate(timeout=PATIENCE)
    assert peace.returncode == 0, err
    assert metrics(run) == metrics(tmp_path/'peace')
    talk(run, tmp_path)


def talk(run, tmp_path):
    "Ask about a test picture, and about a PNG of one's own."
    from PIL import Image
    from aligngpt.easyvqa import folder
    Image.new('RGBA', (300, 200), (255, 0, 0, 128)).save(tmp_path/'own.png')
    for picture in (folder('test')/'0.png', tmp_path/'own.png'):
        p = start('chat', run, '--image', picture, '--question', 'what color is the shape?', '--temperature', 0)
        out, err = p.communicate(timeout=PATIENCE)
        assert p.returncode == 0 and out.strip() and 'Traceback' not in err, err


def test_in_use(tmp_path):
    "A second command on a folder in use says so, and the first goes on."
    run, lines = tmp_path/'run', []
    first = start('quickstart', '--rehearse', '--out', run)
    assert wait_for(first, '[2/7]', lines), ''.join(lines)
    second = start('quickstart', '--rehearse', '--out', run)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1 and 'another command is using' in err and 'Traceback' not in err, err
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE)


@pytest.mark.slow
def test_bars(tmp_path):
    "The whole quickstart, in minutes: what the README promises."
    run = tmp_path/'run'
    p = start('quickstart', '--out', run)
    out, err = p.communicate(timeout=3600)
    assert p.returncode == 0, err
    m = metrics(run)
    assert m['questions'] == 9673 and m['accuracy'] >= .95, m['by_kind']
    assert m['spearman'] >= .8
    assert m['knob']['7']['both'] >= .9, m['knob']
