"""`python -m lmms_eval --model aligngpt`, on a task of our own: the answers are those of our own evaluation. Runs where lmms-eval is installed."""
import importlib.util, json, os, subprocess, sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
TASK = """
task: swatches
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "What colour is it?"
doc_to_target: "colour"
generation_kwargs: {{max_new_tokens: 6, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('lmms_eval') is None, reason='lmms-eval is not installed: pip install lmms-eval')
def test_lmms_eval(tmp_path):
    import datasets
    from aligngpt.evaluation.lmms import answer_requests
    from aligngpt.toy import swatch, toy
    colours = ['red', 'green', 'blue', 'yellow']*5
    model, processor = toy()
    for part in (model, processor): part.save_pretrained(tmp_path/'toy')
    rows = datasets.Dataset.from_dict(dict(colour=colours, image=[swatch(c) for c in colours]), features=datasets.Features(dict(colour=datasets.Value('string'), image=datasets.Image())))
    rows.to_parquet(tmp_path/'test.parquet')
    (tmp_path/'task').mkdir()
    (tmp_path/'task'/'swatches.yaml').write_text(TASK.format(data=tmp_path/'test.parquet'))
    (tmp_path/'task'/'utils.py').write_text("def visual(doc): return [doc['image'].convert('RGB')]\n")
    about = tmp_path/'site'/'aligngpt_lmms-0.dist-info' # the entry point, if the package runs from its folder
    about.mkdir(parents=True)
    (about/'METADATA').write_text('Metadata-Version: 2.1\nName: aligngpt-lmms\nVersion: 0\n')
    (about/'entry_points.txt').write_text('[lmms_eval.models]\naligngpt = aligngpt.evaluation.lmms:manifest\n')
    env = {**os.environ, 'HF_HUB_OFFLINE':'1', 'HF_HOME':str(tmp_path/'hf'), 'PYTHONPATH':os.pathsep.join([str(HERE), str(tmp_path/'site'), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run([sys.executable, '-m', 'lmms_eval', '--model', 'aligngpt', '--model_args', f'pretrained={tmp_path/"toy"},device=cpu', '--tasks', 'swatches', '--include_path', str(tmp_path/'task'),
                           '--batch_size', '8', '--log_samples', '--output_path', str(tmp_path/'out')], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(l) for p in (tmp_path/'out').rglob('*samples*.jsonl') for l in p.read_text().splitlines()]
    theirs = {r['doc_id']: r['filtered_resps'] if isinstance(r['filtered_resps'], str) else r['filtered_resps'][0] for r in found}
    ours = answer_requests(model, processor, [('What colour is it?', dict(max_new_tokens=6, until=['\n']), lambda d: [d['image']], i, '', '') for i in range(20)], lambda task, split, i: rows[i], 8, quiet=True)
    assert [theirs[i] for i in range(20)] == ours
    assert len(set(ours)) > 1
