"lmms-eval runs an AlignGPT checkpoint, as a command, and logs the answers that our own batches give."
import importlib.util, json, os, subprocess, sys
from pathlib import Path

import pytest

from aligngpt.evaluation.lmms_eval import losses, Question
from aligngpt.model.decoding import Ask, answers
from aligngpt.model.toy import COLOURS, QUESTIONS, swatch, toy, toy_answer

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec('lmms_eval') is None,
                                reason='lmms-eval is not installed: pip install lmms-eval')

TASK = '''
dataset_path: parquet
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
doc_to_visual: !function helpers.visual
metadata: [{version: 0.0}]
'''
SPEAK = TASK + '''
task: colours_speak
output_type: generate_until
doc_to_text: !function helpers.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 24, temperature: 0, do_sample: false, until: ["\\n\\n", ","]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
'''
CHOOSE = TASK + '''
task: colours_choose
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
'''
HELPERS = '''
def visual(doc): return [doc['image'].convert('RGB')] if doc['image'] is not None else []
def text(doc, lmms_eval_specific_kwargs=None): return doc['question']
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A checkpoint, two benchmarks of one data file, and our entry point as an installer would write it."
    import datasets
    at = tmp_path_factory.mktemp('lmms')
    for part in toy(): part.save_pretrained(at/'toy')
    rows = [dict(question=q, image=None if c is None else swatch(c, size),
                 answer=toy_answer(q, c).split('\n\n')[0].split(',')[0].strip(),
                 choices=[toy_answer(q, o) for o in COLOURS], right=list(COLOURS).index(c) if c else 0)
            for size in (32, 40) for c in (*COLOURS, None) for q in QUESTIONS[:2]]
    features = datasets.Features(question=datasets.Value('string'), image=datasets.Image(),
                                 answer=datasets.Value('string'), choices=datasets.List(datasets.Value('string')),
                                 right=datasets.Value('int64'))
    datasets.Dataset.from_list(rows, features=features).to_parquet(at/'data.parquet')
    tasks = at/'tasks'/'colours'
    tasks.mkdir(parents=True)
    for name, text in dict(speak=SPEAK, choose=CHOOSE).items():
        (tasks/f'{name}.yaml').write_text(text.replace('DATA', str(at/'data.parquet')))
    (tasks/'helpers.py').write_text(HELPERS)
    info = at/'installed'/'aligngpt-0.dist-info'
    info.mkdir(parents=True)
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: aligngpt\nVersion: 0\n')
    (info/'entry_points.txt').write_text('[lmms_eval.models]\naligngpt = aligngpt.evaluation.lmms_eval:lmms_manifest\n')
    return at, rows


def harness(at, tasks, out, *launcher, **env):
    "The command as users type it; {task: logged samples}, {task: results}."
    path = os.pathsep.join([str(at/'installed'), str(ROOT)])
    env = os.environ | dict(PYTHONPATH=path, HF_HUB_OFFLINE='1', HF_HOME=str(at/'hf'), OMP_NUM_THREADS='1',
                            CUDA_VISIBLE_DEVICES='') | env
    cmd = [sys.executable, *launcher, '-m', 'lmms_eval', '--model', 'aligngpt', '--model_args',
           f"pretrained={at/'toy'},device=cpu", '--tasks', tasks, '--include_path', str(at/'tasks'), '--batch_size',
           '8', '--output_path', str(out), '--log_samples']
    done = subprocess.run(cmd, env=env, cwd=at, capture_output=True, text=True, timeout=3600)
    files = {t: next(iter(Path(out).rglob(f'*samples_{t}.jsonl')), None) for t in tasks.split(',')}
    assert done.returncode == 0 and all(files.values()), done.stdout[-3000:] + done.stderr[-5000:]
    samples = {t: sorted(map(json.loads, f.read_text().splitlines()), key=lambda r: r['doc_id'])
               for t,f in files.items()}
    return samples, json.loads(next(Path(out).rglob('*results.json')).read_text())['results']


def our_answers(rows):
    "What our own batches say."
    asks = [Ask(i, r['question'], None if r['image'] is None else str(i)) for i,r in enumerate(rows)]
    said = dict(x for part in answers(*toy(), asks, lambda k: rows[int(k)]['image'], 24, 8) for x in part)
    return [said[i].split('\n\n')[0].split(',')[0].strip() for i in range(len(rows))]


def test_the_harness_logs_our_answers(place, tmp_path):
    at, rows = place
    samples, results = harness(at, 'colours_speak,colours_choose', tmp_path/'out')
    want = our_answers(rows)
    assert [r['filtered_resps'] for r in samples['colours_speak']] == want
    assert results['colours_speak']['exact_match,none'] == pytest.approx(sum(w == r['answer']
        for w,r in zip(want, rows))/len(rows))
    assert results['colours_speak']['exact_match,none'] > .7 # the toy knows its colours
    model, processor = toy()
    got = [losses(model, processor, [Question(r['question'], ('x',) if r['image'] else (), lambda: [r['image']], c)
                                     for c in r['choices']]) for r in rows]
    logged = [[float(loss) for loss,_ in s['filtered_resps']] for s in samples['colours_choose']]
    assert logged == [pytest.approx([loss for loss,_ in g], abs=1e-4) for g in got]
    best = [min(range(4), key=lambda i: g[i]) for g in got]
    assert results['colours_choose']['acc,none'] == pytest.approx(sum(b == r['right']
        for b,r in zip(best, rows))/len(rows))
    assert results['colours_choose']['acc,none'] > .7


def test_two_processes_answer_the_same(place, tmp_path):
    at, rows = place
    launcher = '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'
    samples, _ = harness(at, 'colours_speak', tmp_path/'out', *launcher, ACCELERATE_USE_CPU='true')
    assert [r['filtered_resps'] for r in samples['colours_speak']] == our_answers(rows)
