"""Tools that know nothing of this model: a graph of it, recorded or compiled, with pictures; weights in 8 and 4 bits by
a plain configuration; prompts that peft learns; and pictures as arrays."""
import numpy as np, pytest, torch
from transformers import AutoModelForImageTextToText

from aligngpt.checkpoints.layouts import save
from aligngpt.model.modeling import PARTS
from small import CHATS, batch, build, picture, processor, user

THREE = [CHATS[0], CHATS[3], CHATS[2]] # rows of one and of two pictures
MORE = [CHATS[1], CHATS[2], CHATS[0], CHATS[3]]


@pytest.fixture(scope='module')
def model(): return build()

def logits(model, b):
    with torch.no_grad(): return model(**b, use_cache=False).logits

def taken(b): return {**b, 'use_cache':False}


@pytest.mark.slow
def test_export(model):
    "`torch.export` with pictures: other pictures, other levels, other sizes than those it was recorded with."
    b, other = batch(THREE), batch(MORE)
    auto = {k:{i:torch.export.Dim.AUTO for i in range(1 if v.dim() > 2 else 2)} for k,v in b.items()}
    with torch.no_grad(): graph = torch.export.export(_Logits(model), (dict(b),), dynamic_shapes=(auto,))
    for x in (b, other, batch(THREE, 'right')):
        torch.testing.assert_close(graph.module()(dict(x)), logits(model, x), atol=1e-4, rtol=1e-4)


class _Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, b): return self.model(**b, use_cache=False).logits


@pytest.mark.slow
def test_one_graph(model):
    "`torch.compile(fullgraph=True)` of whole passes with pictures, for shapes that change, forwards and backwards."
    logits(model, batch(THREE)) # transformers installs hooks in a tower the first time, under a lock, in no graph
    step = torch.compile(model, fullgraph=True, backend='eager', dynamic=True)
    for x in (batch(THREE), batch(MORE)):
        torch.testing.assert_close(logits(step, x), logits(model, x), atol=1e-4, rtol=1e-4)
    b = batch(THREE)
    step(**taken(b), labels=b['input_ids'], return_logits=True).loss.backward() # the loss of all places, one shape
    assert model.levels.weight.grad is not None and model.gate.mlp[0].weight.grad.abs().sum() > 0
    model.zero_grad()


# on a CPU, bitsandbytes packs 4 bits where a layer takes a multiple of 64 numbers, which here the language model's do
@pytest.mark.parametrize('kind, whole', [('8bit', None), ('4bit', [*(f'model.{p}' for p in PARTS[:4]), 'lm_head'])])
def test_plain_quantisation(kind, whole, tmp_path):
    "A `BitsAndBytesConfig` of transformers' own: loaded, asked, saved and loaded again."
    pytest.importorskip('bitsandbytes', reason='bitsandbytes is not installed (the extra `quantize`)')
    from transformers import BitsAndBytesConfig
    model, b = build(hidden_size=64, intermediate_size=128), batch(CHATS)
    save(model, processor(), tmp_path/'whole')
    how = BitsAndBytesConfig(**{f'load_in_{kind}':True}, llm_int8_skip_modules=whole)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path/'whole', quantization_config=how)
    found.save_pretrained(tmp_path/'small')
    near = torch.nn.functional.cosine_similarity(logits(found, b), logits(model, b), dim=-1)
    assert near[b['attention_mask'].bool()].mean() > .9
    said = found.generate(**b, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path/'small')
    assert again.generate(**b, max_new_tokens=4, min_new_tokens=4, do_sample=False).tolist() == said.tolist()


@pytest.mark.parametrize('kind', ['PromptTuningConfig', 'PromptEncoderConfig', 'PrefixTuningConfig'])
def test_learnt_prompts(kind, tmp_path):
    "Virtual tokens stand before the text: they learn, the gate does not read them, and pictures are seen through them."
    peft = pytest.importorskip('peft')
    b = batch(THREE)
    tuned = peft.get_peft_model(build(), getattr(peft, kind)(task_type='CAUSAL_LM', num_virtual_tokens=3))
    out = tuned(**b, labels=b['input_ids'])
    out.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tuned.parameters() if p.requires_grad)
    torch.testing.assert_close(out.weights, build()(**b).weights)
    tuned.eval()
    brief = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
    said = tuned.generate(**b, **brief)
    tuned.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert again.generate(**b, **brief).tolist() == said.tolist()
    row = {k:v[1:2] if v.dim() < 4 else b['pixel_values'][1:3] for k,v in b.items()}
    assert tuned.generate(**row, **brief).tolist()[0][-4:] == said.tolist()[1][-4:]


def test_arrays_in_messages(model):
    "Arrays and tensors, channels last and first, several in a message, are the pictures that they are."
    im = picture('green', (50, 31))
    first, want = np.array(im).transpose(2, 0, 1), batch([[user('What?', im, im)]])['pixel_values']
    for a,b in ((np.array(im), first), (torch.tensor(first), im)):
        assert torch.equal(batch([[user('What?', a, b)]])['pixel_values'], want)
        assert torch.equal(processor()(text='<image><image>', images=[a, b], return_tensors='pt')['pixel_values'], want)
