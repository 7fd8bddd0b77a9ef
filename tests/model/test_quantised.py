"""The language model in 4 or 8 bits; everything that AlignGPT adds stays as it was."""
import pytest, torch

bitsandbytes = pytest.importorskip('bitsandbytes', reason='bitsandbytes is not installed (the extra `quantize`)')

from aligngpt.checkpoints.adapters import add_lora
from aligngpt.checkpoints.layouts import from_base, load, save
from aligngpt.checkpoints.convert import convert
from aligngpt.core.errors import AlignGPTError
from aligngpt.testing.fixtures import save_language_model
from small import CHATS, batch, build, processor

KIND = dict(nf4=bitsandbytes.nn.Linear4bit, int8=bitsandbytes.nn.Linear8bitLt)
CPU = dict(dtype='float32', device='cpu')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A model with a language model of 64 and 128 columns, in both layouts."
    tmp = tmp_path_factory.mktemp('quantised')
    model = build(hidden_size=64, intermediate_size=128)
    save(model, processor(), tmp/'ours')
    convert(tmp/'ours', tmp/'official', quiet=True)
    save_language_model(model, tmp/'llm'); processor().tokenizer.save_pretrained(tmp/'llm')
    model.vision_tower.save_pretrained(tmp/'clip'); processor().image_processor.save_pretrained(tmp/'clip')
    return tmp, model

def layers(model): return {n:type(m) for n,m in model.named_modules() if isinstance(m, torch.nn.Linear)}

def check_parts(model, whole, kind):
    "Only the language model's layers are quantised; the rest is equal to the bit."
    for n,t in layers(model).items():
        inside = n.startswith('model.language_model.')
        assert issubclass(t, KIND[kind]) == inside, n
    kept = {n:p for n,p in model.state_dict().items() if not n.startswith('model.language_model.layers')}
    for n,p in whole.state_dict().items():
        if not n.startswith('model.language_model.layers'):
            assert torch.equal(kept[n], p) and kept[n].dtype == torch.float32, n

@pytest.mark.parametrize('kind', KIND)
@pytest.mark.parametrize('layout', ['ours', 'official'])
def test_load(folder, kind, layout):
    tmp, whole = folder
    model, p = load(tmp/layout, quantize=kind, **CPU)
    check_parts(model, whole, kind)
    b = batch(CHATS)
    with torch.no_grad(): got, want = model(**b), whole(**b)
    assert torch.equal(got.image_hidden_states, want.image_hidden_states)
    if layout == 'ours':
        torch.testing.assert_close(got.weights, want.weights, atol=1e-6,
                                   rtol=0) # the gate reads embeddings and pictures, which are whole
    keep = b['attention_mask'].bool()
    near = torch.nn.functional.cosine_similarity(got.logits[keep], want.logits[keep]).mean()
    assert near > dict(nf4=.95, int8=.99)[kind], near
    assert model.generate(**b, max_new_tokens=4, min_new_tokens=4).shape == (4, b['input_ids'].shape[1] + 4)

@pytest.mark.parametrize('kind', KIND)
def test_adapters_learn_on_top(folder, kind):
    tmp, whole = folder
    model, p = from_base(tmp/'llm', tmp/'clip', quantize=kind, **CPU)
    add_lora(model, rank=4, alpha=8, dropout=0.)
    model.requires_grad_(False)
    trained = [q for n,q in model.named_parameters() if 'lora_' in n or n.startswith('model.projector')]
    for q in trained: q.requires_grad_(True)
    sample = p.with_settings(template='v1').encode([*CHATS[0], dict(role='assistant', content='It is **red**.')])
    b = {k:v[None] if k != 'pixel_values' else v for k,v in sample.items()}
    frozen = {n:q.clone() for n,q in model.named_parameters() if not q.requires_grad}
    opt, losses = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(6):
        loss = model(**b, alignment=7).loss
        opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    assert losses[-1] < losses[0] - .3, losses
    assert all(torch.equal(q, frozen[n]) for n,q in model.named_parameters() if n in frozen)

def test_not_converted(folder, tmp_path):
    model, p = load(folder[0]/'ours', quantize='nf4', **CPU)
    save(model, p, tmp_path/'saved')
    again, _ = load(tmp_path/'saved', **CPU)
    b = batch(CHATS[:1])
    with torch.no_grad(): torch.testing.assert_close(again(**b).logits, model(**b).logits, atol=1e-5, rtol=0)
    with pytest.raises(AlignGPTError, match='is quantised'): convert(tmp_path/'saved', tmp_path/'new', quiet=True)
    with pytest.raises(AlignGPTError, match='Unknown quantization'): load(folder[0]/'ours', quantize='fp4', **CPU)
