"""easy-VQA's 9,673 questions, in batches and one at a time, with the model of the quickstart: the same answers;
how much faster is printed.

    aligngpt quickstart && ALIGNGPT_QUICKSTART=runs/quickstart pytest -s -m slow
    tests/evaluation/test_eval_speed.py
"""
import os, statistics, time
from pathlib import Path

import pytest

from aligngpt.checkpoints.layouts import open_model
from aligngpt.evaluation.questions import load_image
from aligngpt.evaluation.tasks import get_task, image_folder, questions
from aligngpt.model.decoding import Ask, answers, windows
from aligngpt.model.cpu import keep_freed_memory

RUN = Path(os.environ.get('ALIGNGPT_QUICKSTART', 'runs/quickstart'))


def alone(model, processor, text, image, tokens):
    "One question with transformers' own means."
    chat = [dict(role='user', content=[dict(type='image', image=image), dict(type='text', text=text)])]
    batch = processor.apply_chat_template([chat], add_generation_prompt=True, tokenize=True, return_dict=True,
                                          return_tensors='pt')
    ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False, use_cache=True,
                         eos_token_id=list(processor.stop_token_ids))
    return processor.tokenizer.decode(ids[0, batch['input_ids'].shape[1]:], skip_special_tokens=True).strip()


@pytest.mark.slow
@pytest.mark.skipif(not (RUN/'report'/'metrics.json').exists(),
                    reason=f'no finished quickstart in {RUN}: name one with ALIGNGPT_QUICKSTART')
def test_batches_pay():
    "In turn, an eighth of the pictures each time, since the load of a machine changes: medians."
    keep_freed_memory() # as `aligngpt eval` does
    (model, processor), task = open_model(str(RUN), 'cpu', 'auto'), get_task('easy_vqa')
    qs, folder = questions(task, '.'), image_folder(task, '.')
    named = {q.picture: q for q in qs}
    asks, load = [Ask(i, q.text, q.picture) for i,q in enumerate(qs)], lambda name: load_image(named[name], folder)
    together, single, n = [], [], 0
    for part in windows(asks, 125):
        mine, got = [asks[i] for i in part], {}
        start = time.perf_counter()
        for some in answers(model, processor, mine, load, task.max_new_tokens, 64, 125): got.update(some)
        middle = time.perf_counter()
        want = {i: alone(model, processor, a.text, load(a.image), task.max_new_tokens) for i,a in enumerate(mine)}
        together.append((middle - start)/len(mine))
        single.append((time.perf_counter() - middle)/len(mine))
        n += len(mine)
        assert got == want
    ratios = sorted(s/t for s,t in zip(single, together))
    fast, slow, ratio = 1/statistics.median(together), 1/statistics.median(single), statistics.median(ratios)
    print(f'\n{n:,} questions, the same answers: {fast:.0f} a second in batches, {slow:.0f} alone; '
          f'{ratio:.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f}), bar 10')
