"""Other people's clients over several turns against a running server, in an environment of their own, since they bring
a hundred packages. `ALIGNGPT_CLIENTS` names the Python of one that is there; else one is made."""
import base64, json, os, subprocess, sys
from io import BytesIO
from pathlib import Path

import pytest

pytest.importorskip('uvicorn', reason="no uvicorn: pip install 'aligngpt[dev]'")
from aligngpt.model.toy import swatch, toy_answer
from served import save_runs, serve

PACKAGES = 'langchain-openai', 'litellm', 'llama-index-llms-openai-like'
TOLD = ['It is **blue**.', toy_answer('Count to ten.'), 'It is **red**.', 'It is **red**.']
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    "The Python of an environment with the clients."
    if given := os.environ.get('ALIGNGPT_CLIENTS'): return given
    env = tmp_path_factory.mktemp('clients')/'env'
    subprocess.run([sys.executable, '-m', 'venv', env], check=True)
    python = env/'bin'/'python'
    done = subprocess.run([python, '-m', 'pip', 'install', '-q', *PACKAGES], capture_output=True, text=True)
    if done.returncode: pytest.skip(f'the clients cannot be installed: {done.stderr[-300:]}')
    return str(python)


def url(colour):
    "A swatch as a data URL."
    out = BytesIO()
    swatch(colour).save(out, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


def test_clients(python, tmp_path):
    save_runs(tmp_path)
    env = {k:v for k,v in os.environ.items() if k != 'PYTHONPATH'} | dict(LITELLM_LOCAL_MODEL_COST_MAP='True',
        NO_PROXY='*')
    with serve(tmp_path, 'toy', '--no-page') as server:
        line = [python, Path(__file__).with_name('client_talks.py'), server.url + '/v1', url('blue'), url('red')]
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop('openai_old') == [*TOLD[:3], TOLD[1]]
    for name in ('langchain_more', 'litellm_more', 'llama_index_more'):
        assert told.pop(name) == [TOLD[0], TOLD[0], 'It is **', TOLD[0], True], name
    assert told == {k:TOLD for k in ('langchain', 'langchain_responses', 'litellm', 'litellm_responses',
                                     'llama_index')}
