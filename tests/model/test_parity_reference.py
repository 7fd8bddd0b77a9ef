"""The numbers of the reference implementation, reproduced through the public functions from the official files.

The folder comes from `ALIGNGPT_REFERENCE` (by default `../shared/reference`). Each of its sub-folders that
holds an
`expected.json` is tested, whatever the sizes, images and conversations in it. A smaller one, which `seeded.py`
makes, is
tested always.
"""
import json, os, re
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

from aligngpt.checkpoints.layouts import load, load_parts, load_pretrained_align, our_name
from aligngpt.model.modeling import stored_name
from aligngpt.training.stage import add_gate, freeze
from aligngpt.checkpoints.weights import find_weights, map_tensors
from seeded import make_reference

HERE = Path(__file__).resolve().parents[2]
ROOT = HERE/os.environ.get('ALIGNGPT_REFERENCE', HERE.parent/'shared'/'reference')
FOLDERS = sorted(p.parent for p in ROOT.glob('*/expected.json'))
CPU = dict(dtype='float32', device='cpu')


@pytest.fixture(scope='module', params=['seeded', *(FOLDERS or [None])],
                ids=lambda p: p if isinstance(p, str) else p.name if p else 'absent')
def ref(request, tmp_path_factory):
    "A reference folder: its path, its numbers, its tensors."
    folder = request.param
    if folder is None: pytest.skip(f'no reference numbers in {ROOT}: set ALIGNGPT_REFERENCE to their folder')
    if folder == 'seeded': folder = make_reference(tmp_path_factory.mktemp('seeded')/'seeded')
    torch.manual_seed(0)
    return folder, json.loads((folder/'expected.json').read_text()), load_file(folder/'expected.safetensors')


def records(folder, name): return json.loads((folder/f'{name}.json').read_text())

def encode(folder, data, processor):
    "Samples of a data file, and the batch of them."
    rows = [processor.encode(r, [folder/'images'/r['image']] if 'image' in r else []) for r in data]
    def pad(k, value):
        return torch.nn.utils.rnn.pad_sequence([r[k] for r in rows], batch_first=True, padding_value=value)
    batch = dict(input_ids=pad('input_ids', processor.tokenizer.pad_token_id), labels=pad('labels', -100),
                 gate_mask=pad('gate_mask', False))
    batch['attention_mask'] = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r['input_ids']) for r in rows],
                                                              batch_first=True)
    batch['pixel_values'] = torch.cat([r['pixel_values'] for r in rows if 'pixel_values' in r])
    return rows, batch

def collapse(row, processor):
    "(ids, labels) of a sample as the reference writes them: one -200 for a picture, no ALIGN."
    ids, labels, out = row['input_ids'].tolist(), row['labels'].tolist(), []
    for k,(i,l) in enumerate(zip(ids, labels)):
        if i == processor.align_token_id or (i == processor.image_token_id and k and ids[k-1] == i): continue
        out.append((-200 if i == processor.image_token_id else i, l))
    return [list(x) for x in zip(*out)]

def check_ids(rows, want, processor):
    for row, ids, labels in zip(rows, want['input_ids'], want['labels'], strict=True):
        got = collapse(row, processor)
        n = len(got[0])
        assert got == [ids[:n], labels[:n]]
        assert set(labels[n:]) <= {-100} and len(set(ids[n:])) <= 1 # padding

def steps(model, batch, want, prefix='', **kwargs):
    "Train as the keys of `want` say: a new AdamW with the rate in the key, a step after each loss."
    trained = [p for p in model.parameters() if p.requires_grad]
    for key in [k for k in want if re.fullmatch(r'(then_)?adamw_lr[\d.e-]+_losses', k)]:
        opt = torch.optim.AdamW(trained, lr=float(re.search(r'lr([\d.e-]+)_', key)[1]), weight_decay=0.)
        for i,expected in enumerate(want[key]):
            loss = model(**batch, **kwargs).loss
            assert loss.item() == pytest.approx(expected, rel=1e-5), f'{key}[{i}]'
            opt.zero_grad(); loss.backward(); opt.step()

def norm(*params): return torch.nn.utils.get_total_norm([p.grad for p in params]).item()

def check_trained(model, files, eps):
    "The weights after the last step are those that the reference saved."
    have, seen = {stored_name(n):p for n,p in model.state_dict().items()}, 0
    for k,t in (o for f in files for o in map_tensors(f).items()):
        if (n := our_name(k)) in have and not n.startswith('vision_tower.'):
            torch.testing.assert_close(have[n], t, atol=eps, rtol=0, msg=lambda m: f'{k}: {m}'); seen += 1
    assert seen


def test_pretraining(ref):
    folder, expected, tensors = ref
    want, data = expected['pretrain'], records(folder, 'pretrain')
    about = json.loads((folder/'pretrain_out'/'config.json').read_text()) # the initial file has no configuration beside it
    model, processor = load_pretrained_align(folder/'pretrain_init_mm_projector_align.bin', folder/'llm',
                                             folder/'clip', vision_feature_layer=about['mm_vision_select_layer'],
                                             **CPU)
    assert (processor.template, processor.image_aspect_ratio) == ('plain', 'square')
    rows, batch = encode(folder, data, processor)
    check_ids(rows, want, processor)
    levels = torch.tensor([r['similarity'] for r in data])
    assert levels.tolist() == want['align_ids']
    length = [len(r['input_ids']) for r in rows]
    assert max(length) == want['logits_shape'][1]

    model.train(); freeze(model, ('projector', 'levels'))
    out = model(**batch, alignment=levels, return_logits=True)
    assert out.loss.item() == pytest.approx(want['loss'], rel=1e-5)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    close(out.image_hidden_states[:, ::37], tensors['pretrain.image_features'])
    close(out.logits[:, 1], tensors['pretrain.logits_pos1'])
    caption = tensors['pretrain.logits_caption']
    start = want['logits_shape'][1] - caption.shape[1]
    for i,n in enumerate(length):
        close(out.logits[i, start:n, :caption.shape[2]], caption[i, :n-start])
        if n == max(length): close(out.logits[i, -1], tensors['pretrain.logits_last'][i])
    out.loss.backward()
    assert norm(*model.projector.parameters()) == pytest.approx(want['projector_grad_norm'], rel=1e-4)
    assert norm(model.levels.weight) == pytest.approx(want['indicator_grad_norm'], rel=1e-4)
    steps(model, batch, want, alignment=levels)
    check_trained(model, [folder/'pretrain_out'/'mm_projector_align.bin'], 1e-5)


def test_tuning(ref):
    folder, expected, tensors = ref
    want, data = expected['finetune'], records(folder, 'finetune')
    width = len(map_tensors(folder/'finetune_init_gate.bin')['gated_weight_layer.mlp.0.bias'])
    model, processor = load_pretrained_align(folder/'pretrain_out', folder/'llm', template='v1',
                                             image_aspect_ratio='pad', gate_hidden_size=width, **CPU)
    add_gate(model, 'full'); load_parts(model, folder/'finetune_init_gate.bin')
    processor.gate_text = 'full'
    rows, batch = encode(folder, data, processor)
    check_ids(rows, want, processor)
    assert [len(r['input_ids']) for r in rows] == [want['sequence_lengths'][str(i)] for i in range(len(rows))]

    model.train(); freeze(model, ('language_model', 'projector', 'gate'))
    out = model(**batch, return_logits=True)
    assert out.loss.item() == pytest.approx(want['loss'], rel=1e-5)
    pictured = [i for i,r in enumerate(data) if 'image' in r]
    torch.testing.assert_close(out.weights[pictured, :-1], torch.tensor(want['gate_scores']), atol=1e-5, rtol=0)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    for i,row in enumerate(want['order']): close(out.logits[row, 1], tensors['finetune.logits_pos1'][i])
    for i,r in enumerate(rows): close(out.logits[i, len(r['input_ids'])-1], tensors[f'finetune.logits_final_{i}'])
    out.loss.backward()
    have = {stored_name(n):p for n,p in model.named_parameters()}
    for k,v in want['grad_norms'].items(): assert norm(have[our_name(k)]) == pytest.approx(v, rel=1e-3), k
    steps(model, batch, want)
    check_trained(model, find_weights(next(folder.glob('aligngpt-*'))), 1e-4)


def test_inference(ref):
    folder, expected, _ = ref
    model, processor = load(next(folder.glob('aligngpt-*')), **CPU)
    assert model.config.gate_text == processor.gate_text == 'full'
    for want in expected['inference']:
        chat = [dict(role=role, content=text) for role,text in want['turns']]
        if 'image' in want:
            chat[0]['content'] = [dict(type='image', path=str(folder/'images'/want['image'])),
                                  dict(type='text', text=chat[0]['content'])]
        assert processor.apply_chat_template(chat, add_generation_prompt=True) == want['prompt']
        batch = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True,
                                              return_tensors='pt')
        row = dict(input_ids=batch['input_ids'][0], labels=batch['input_ids'][0])
        assert collapse(row, processor)[0] == want['input_ids']
        n, new = len(row['input_ids']), len(want['generated'])
        out = model.generate(**batch, max_new_tokens=new, do_sample=False,
                             suppress_tokens=[processor.tokenizer.eos_token_id], return_dict_in_generate=True)
        assert out.sequences[0, n:].tolist() == want['generated']
        if want.get('gate'):
            torch.testing.assert_close(out['weights'][:, :-1], torch.tensor(want['gate']), atol=1e-5, rtol=0)
