"""Golden benchmark cases, driven by their files alone.

Every folder below $ALIGNGPT_BENCHMARKS (default: ../shared/benchmarks, relative to the repository) that is
named after a
task holds official files, answers and `expected.json` with the official scorer's results. Nothing here knows
what is in them.
"""
import json, os
from pathlib import Path

import pytest

from aligngpt.text.conversation import TEMPLATES
from aligngpt.core.errors import AlignGPTError
from aligngpt.evaluation.choice import EMPTY, mmbench_match, read_xlsx
from aligngpt.evaluation.judge import Replies
from aligngpt.evaluation.questions import Files
from aligngpt.evaluation.tasks import TASKS, questions, score, submit
from aligngpt.evaluation.text import evalai_process, read_answers, vqa_normalise

ROOT = Path(os.environ.get('ALIGNGPT_BENCHMARKS') or Path(__file__).resolve().parents[3]/'shared'/'benchmarks')
FOLDERS = sorted(f.parent for f in ROOT.glob('*/expected.json') if f.parent.name in TASKS)
DESCRIBES = {'file', 'route', 'note', 'error', 'official_error'} # keys that hold no result

pytestmark = pytest.mark.skipif(not FOLDERS,
                                reason=f'no golden benchmark cases in {ROOT}: set ALIGNGPT_BENCHMARKS to their folder')

def rows(path): return [json.loads(l) for l in path.read_bytes().split(b'\n') if l.strip()]
def expected(folder): return json.loads((folder/'expected.json').read_bytes())
def with_file(name): return [f for f in FOLDERS if (f/name).exists()]
def each(folders): return pytest.mark.parametrize('folder', folders, ids=lambda f: f.name)

def differences(want, got, path='', exact=False):
    "Where `got` lacks or contradicts something of `want`; rounded percentages may differ by 0.006."
    if isinstance(want, dict):
        if not isinstance(got, dict): yield f'{path}: expected an object, got {got!r}'; return
        for k,v in want.items():
            if k in DESCRIBES: continue
            if k not in got: yield f'{path}/{k}: missing'
            else: yield from differences(v, got[k], f'{path}/{k}', exact or str(k).endswith(('_6dp', '_unrounded')))
    elif isinstance(want, list):
        if not isinstance(got, (list, tuple)) or len(want) != len(got):
            yield f'{path}: expected {len(want)} entries, got {got!r}'; return
        for i,(w,g) in enumerate(zip(want, got)): yield from differences(w, g, f'{path}/{i}', exact)
    elif isinstance(want, (int, float)) and not isinstance(want, bool):
        number = isinstance(got, (int, float)) and not isinstance(got, bool)
        if not number or abs(want-got) > (2e-6 if exact or abs(want) <= 1 else .006):
            yield f'{path}: expected {want!r}, got {got!r}'
    elif want != got: yield f'{path}: expected {want!r}, got {got!r}'

def check(want, got):
    bad = list(differences(want, got))
    assert not bad, f'{len(bad)} differences:\n' + '\n'.join(bad[:20])

def recorded(folder):
    "The recorded judge of a folder, if it has one."
    path = next(iter(sorted(folder.glob('judge_replies.*'))), None)
    return Replies.read(path) if path else None

def run(folder, file=None, **kw):
    return score(folder.name, folder, folder/(file or expected(folder)['main']['file']), judge=recorded(folder), **kw)

@each(FOLDERS)
def test_main(folder):
    want, report = expected(folder), run(folder)
    check(want['headline'], report.headline)
    check(want['main'], report.results)

@each(FOLDERS)
def test_saved_report(folder, tmp_path):
    want, got = expected(folder), json.loads(run(folder).save(tmp_path/'out.json').read_text())
    check(want['headline'], got['headline'])
    check(want['main'], got)

@each(FOLDERS)
def test_other_blocks(folder):
    "Blocks beside `main`: the raw route of VQAv2, alternative rules, and the submission."
    report = run(folder)
    for name,block in expected(folder).items():
        if name in ('metric', 'headline', 'main', 'variants'): continue
        check(block, run(folder, block['file'], convert=False).results if 'file' in block else report.results[name])

VARIANTS = [(f, v) for f in FOLDERS for v in expected(f).get('variants', [])]

@pytest.mark.parametrize('folder,variant', VARIANTS, ids=[f'{f.name}-{v["file"]}' for f,v in VARIANTS])
def test_variant(folder, variant):
    if not variant.get('error'): check(variant, run(folder, variant['file']).results); return
    with pytest.raises(AlignGPTError) as e: run(folder, variant['file'])
    assert variant['file'] in str(e.value) and '\n' not in e.value.message

@each(FOLDERS)
def test_prompts_are_those_of_the_answers(folder):
    "What is saved with an answer is what the official scripts saved."
    asked, ids = {q.key: q for q in questions(folder.name, folder)}, {q.id for q in questions(folder.name, folder)}
    answered = [r for r in rows(folder/expected(folder)['main']['file']) if r['question_id'] in ids]
    assert {(r['question_id'], r['prompt']) for r in answered} == set(asked)
    for r in answered:
        assert asked[r['question_id'], r['prompt']].row(r['text'], r.get('model_id', ''), r.get('answer_id', '')) == r

@each(with_file('expected_prompts.jsonl'))
def test_model_input(folder):
    "The complete model input in the Vicuna v1 format, to the character."
    t = TEMPLATES['v1']
    got = {q.id: t.system + t.after_system + t.before_user + q.user + t.before_answer
           for q in questions(folder.name, folder)}
    want = {r['question_id']: r['prompt'] for r in rows(folder/'expected_prompts.jsonl')}
    check(want, got)
    assert len(got) == len(want)

@each([f for f in FOLDERS if TASKS[f.name].submit])
def test_upload(folder, tmp_path):
    "The file for the server holds what the official converter writes."
    want, task = expected(folder), TASKS[folder.name]
    main, out = want['main'], submit(folder.name, folder, folder/want['main']['file'],
                                     tmp_path/f'upload{task.suffix}')
    if task.suffix == '.xlsx':
        got, sub = read_xlsx(out), want['submission']
        assert list(got[0]) == sub['columns_aligngpt'] and len(got) == sub['rows']
        check(sub['predictions'], {str(r['index']): None if r['prediction'] in EMPTY else r['prediction']
                                   for r in got})
    else:
        got = rows(out) if task.suffix == '.jsonl' else json.loads(out.read_text())
        pairs = got if isinstance(got, dict) else {str(k): v for k,v in (r.values() for r in got)}
        check(next(main[k] for k in ('submission', 'converted', 'results_json_first', 'upload_first_rows')
                   if k in main), got[:3] if 'upload_first_rows' in main else pairs)

@each(with_file('normalization.jsonl'))
def test_normalisers(folder):
    for r in rows(folder/'normalization.jsonl'):
        assert evalai_process(r['raw']) == r['evalai_processor'], r
        assert vqa_normalise(r['raw'].replace('\n', ' ').replace('\t', ' ').strip(),
                             ascii_digits=True) == r['vqa_official'], r

@each(with_file('option_extraction.jsonl'))
def test_option_extraction(folder):
    for r in rows(folder/'option_extraction.jsonl'):
        old, new = sorted(k for k in r if k.startswith('extracted_'))
        assert (mmbench_match(r['answer'], r['choices']),
                mmbench_match(r['answer'], r['choices'], newer=True)) == (r[old], r[new]), r

@each(with_file('expected_judge_prompts.jsonl') + with_file('expected_judge_calls.jsonl'))
def test_judge_calls(folder):
    "The judge is asked exactly what the official script asks, in the same order."
    judge = recorded(folder)
    score(folder.name, folder, folder/expected(folder)['main']['file'], judge=judge)
    if (f := folder/'expected_judge_prompts.jsonl').exists():
        assert [(c.id, c.content) for c in judge.log] == [(str(r['question_id']), r['user']) for r in rows(f)]
    if (f := folder/'expected_judge_calls.jsonl').exists():
        assert [dict(id=c.id, temperature=c.temperature, max_tokens=c.max_tokens, content=c.content)
                for c in judge.log] == rows(f)

@each(FOLDERS)
def test_cut_off_answers(folder, tmp_path):
    "A file that ends in the middle of a line is skipped there (VQAv2, VizWiz) or an error that names the line."
    raw, cut = (folder/expected(folder)['main']['file']).read_bytes().rstrip(b'\n'), tmp_path/'cut.jsonl'
    cut.write_bytes(raw + b'\n{"question_id": 1, "te')
    n = raw.count(b'\n') + 2
    if folder.name in ('vqav2', 'vizwiz'):
        check(expected(folder)['headline'], score(folder.name, folder, cut).headline)
        assert read_answers(cut, skip_broken=True).broken == [n]
    else:
        with pytest.raises(AlignGPTError, match=f'cut.jsonl, line {n}: not valid JSON'):
            score(folder.name, folder, cut, judge=recorded(folder))

@each(FOLDERS)
def test_points_and_right_answers(folder):
    "Each question finds its points and its right answer under the names that the task gives them."
    task, files = TASKS[folder.name], Files(TASKS[folder.name], folder)
    asked, points, right = task.questions(files), task.points(run(folder).results), task.truth(files)
    assert {task.called(q) for q in asked} == set(points)
    assert all(isinstance(right(q), str) for q in asked)
