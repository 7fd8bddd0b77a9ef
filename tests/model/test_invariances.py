"""What must not change a result: batching, padding, order, caches, kernels, files; and that nothing of the future
leaks.

Model and processor together, on the model of `small.py`.
"""
import pytest, torch
from transformers import AutoModelForImageTextToText, DynamicCache, StaticCache

from aligngpt.checkpoints.adapters import add_lora, merge_lora
from aligngpt.checkpoints.layouts import load, save
from aligngpt.text.conversation import prompt_end, render
from aligngpt.checkpoints.convert import convert
from small import CHATS, batch, build, picture, processor, says, user

EPS = 1e-5


@pytest.fixture(scope='module')
def model(): return build()

def near(a, b, what=''):
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert a.shape == b.shape, what
    assert (gap := (a - b).abs().max().item()) < EPS, f'{what}: {gap:.1e}'

@torch.no_grad()
def rows(model, b, **kwargs):
    "Logits of each row without its padding."
    return [l[m.bool()] for l,m in zip(model(**b, **kwargs).logits, b['attention_mask'])]

def answers(model, b, n=8, **kwargs):
    "Greedy ids and the logits behind them."
    out = model.generate(**b, max_new_tokens=n, min_new_tokens=n, do_sample=False, return_dict_in_generate=True,
                         output_logits=True, **kwargs)
    return out.sequences[:, -n:], torch.stack(out.logits, 1), out['weights'] if 'weights' in out else None

def same(a, b):
    assert a[0].tolist() == b[0].tolist()
    near(a[1], b[1])
    if a[2] is not None and b[2] is not None: near(a[2], b[2])


def test_logits_differ(model):
    "The suite would see a difference: other pictures, other words and other levels give other logits."
    b = batch(CHATS[:1])
    base = rows(model, b)[0]
    assert base.std() > .1
    for other in (batch([[user('What colour is it?', picture('blue'))]]),
                  batch([[user('What colour is ten', picture('red'))]])):
        assert (rows(model, other)[0][-1] - base[-1]).abs().max() > 100*EPS
    assert (rows(model, b, alignment=0)[0] - rows(model, b, alignment=3)[0]).abs().max() > 100*EPS


@pytest.mark.parametrize('side', ['left', 'right'])
def test_batch_is_singles(model, side):
    for got, chat in zip(rows(model, batch(CHATS, side)), CHATS): near(got, rows(model, batch([chat]))[0])

def test_generated_batch_is_singles(model):
    ids, logits, weights = answers(model, batch(CHATS))
    for i,chat in enumerate(CHATS):
        one = answers(model, batch([chat]))
        assert one[0][0].tolist() == ids[i].tolist()
        near(one[1][0], logits[i])
        if one[2] is not None: near(one[2][0], weights[i])

def test_row_order(model):
    order = [2, 0, 3, 1]
    plain, mixed = batch(CHATS), batch([CHATS[i] for i in order])
    for i,got in zip(order, rows(model, mixed)): near(got, rows(model, plain)[i])
    near(answers(model, mixed)[1], answers(model, plain)[1][order])

def test_loss_of_mixed_batch(model):
    "The loss of a batch with and without pictures is the mean over its labels, whatever the padding side."
    chats = [c + [says('It is **red**.')] for c in CHATS]
    def loss(chats, side):
        rows = [processor().encode(c) for c in chats]
        b = batch(chats, side, prompt=False)
        labels = torch.full_like(b['input_ids'], -100)
        labels[b['attention_mask'].bool()] = torch.cat([r['labels'] for r in rows])
        with torch.no_grad(): out = [model(**b, labels=labels, return_logits=r).loss for r in (True, False)]
        near(*out)
        return out[0], (labels[:, 1:] != -100).sum()
    singles = [loss([c], 'right') for c in chats]
    want = sum(l*n for l,n in singles)/sum(n for _,n in singles)
    for side in ('left', 'right'): near(loss(chats, side)[0], want, side)

def test_cached_is_uncached(model):
    "Token by token through a cache gives the logits of one pass, and the same continuation."
    b = batch(CHATS)
    same(answers(model, b), answers(model, b, use_cache=False))
    full, one = rows(model, batch(CHATS[2:3])), batch(CHATS[2:3])
    n, cache = one['input_ids'].shape[1], DynamicCache(config=model.config.text_config)
    start = n - 9
    with torch.no_grad():
        got = [model(**{k:v[:, :start] if k != 'pixel_values' else v for k,v in one.items()}, cache=cache).logits[0]]
        for i in range(start, n): got.append(model(input_ids=one['input_ids'][:, i:i+1], cache=cache).logits[0])
    near(torch.cat(got), full[0])

def test_static_is_dynamic_cache(model):
    b = batch(CHATS)
    same(answers(model, b), answers(model, b, cache_implementation='static'))
    n = b['input_ids'].shape[1]
    same(answers(model, b), answers(model, b, cache=StaticCache(config=model.config.text_config, max_cache_len=n+8)))

@pytest.mark.parametrize('kernel', ['eager', pytest.param('flex_attention', marks=pytest.mark.slow)])
def test_attention_kernels(model, kernel):
    other = build()
    other.set_attn_implementation(kernel)
    assert other.language_model.config._attn_implementation == kernel
    b = batch(CHATS)
    for got,want in zip(rows(other, b), rows(model, b)): near(got, want)
    if kernel == 'eager': same(answers(other, b), answers(model, b))

def test_saved_is_in_memory(model, tmp_path):
    save(model, processor(), tmp_path/'saved')
    again, p = load(tmp_path/'saved', 'float32', 'cpu')
    auto = AutoModelForImageTextToText.from_pretrained(tmp_path/'saved')
    b = batch(CHATS)
    for k,v in batch(CHATS, p=p).items(): assert torch.equal(v, b[k]), k
    for m in (again, auto):
        for (n, x), y in zip(model.state_dict().items(), m.state_dict().values(), strict=True):
            assert torch.equal(x, y), n
        assert all(torch.equal(x, y) for x,y in zip(rows(m.eval(), b), rows(model, b)))

def test_merged_adapters(model):
    adapted = add_lora(build(), rank=4, alpha=8)
    torch.manual_seed(1)
    for n,q in adapted.named_parameters():
        if 'lora_B' in n: q.data.normal_(std=.05)
    b = batch(CHATS)
    before, greedy = rows(adapted, b), answers(adapted, b)
    assert (before[0] - rows(model, b)[0]).abs().max() > 100*EPS
    merge_lora(adapted)
    for x,y in zip(rows(adapted, b), before): near(x, y)
    same(answers(adapted, b), greedy)

def test_converted_there_and_back(model, tmp_path):
    save(model, processor(), tmp_path/'ours')
    there = convert(tmp_path/'ours', tmp_path/'official', shard='60KB', pickled=True, quiet=True)
    back = convert(there, tmp_path/'back', quiet=True)
    b = batch(CHATS)
    for folder in (there, back):
        m, p = load(folder, 'float32', 'cpu')
        for k,v in batch(CHATS, p=p).items(): assert torch.equal(v, b[k]), k
        assert all(torch.equal(x, y) for x,y in zip(rows(m, b), rows(model, b)))


# Nothing of the future leaks.

LONG = [user('What colour is it?', picture('red')), says('It is **red**.'), user('Is it warm or cool?'),
        says('Warm, since it is **red**.'), user('Count to ten.'), says('one, two, three')]

def changed(gate_text, where):
    "How much each logit before position `where` moves when the token there changes, [where, vocabulary]."
    m, p = build(gate_text), processor(gate_text)
    sample = p.encode(LONG)
    b = dict(input_ids=sample['input_ids'][None], gate_mask=sample['gate_mask'][None],
             pixel_values=sample['pixel_values'], labels=sample['labels'][None])
    ids = b['input_ids'].clone()
    ids[0, where] = (ids[0, where] + 7) % 200 + 10
    with torch.no_grad(): return (m(**{**b, 'input_ids':ids}).logits - m(**b).logits)[0, :where].abs()

def spans(p):
    "Positions of all tokens after the first question, from its answer on."
    sample = p.encode(LONG)
    first = (sample['labels'] != -100).nonzero()[0].item()
    return first, len(sample['input_ids'])

def test_nothing_leaks():
    first, end = spans(processor())
    for where in range(first, end): assert changed('prompt', where).max() == 0, where

def test_full_gate_leaks():
    "`gate_text='full'`, the official behaviour, lets every later token reach every position from ALIGN on."
    first, end = spans(processor('full'))
    for where in (first, (first+end)//2, end-1):
        moved = changed('full', where).amax(-1)
        assert moved[1:].min() > 0 and moved[0] == 0, where

def test_training_is_inference():
    "Logits in training equal those of each turn as it is asked, with a gate that was told nothing but the turn."
    m, p = build(), processor()
    sample = p.encode(LONG)
    with torch.no_grad():
        whole = m(input_ids=sample['input_ids'][None], labels=sample['labels'][None],
                  pixel_values=sample['pixel_values'], return_logits=True)
    for turn in (1, 3, 5):
        b = batch([LONG[:turn]])
        n = b['input_ids'].shape[1]
        assert b['input_ids'][0].tolist() == sample['input_ids'][:n].tolist()
        with torch.no_grad(): out = m(**b)
        near(out.logits[0], whole.logits[0, :n])
        near(out.weights, whole.weights)

def test_gate_reads_the_same_everywhere():
    "The processor's mask in training and inference, and the model's own rule from labels, name the same tokens."
    m, p = build(), processor()
    sample = p.encode(LONG)
    read = sample['input_ids'][sample['gate_mask']].tolist()
    by_labels = m.gate_reads(sample['input_ids'][None], labels=sample['labels'][None])[0]
    assert sample['input_ids'][by_labels].tolist() == read
    for turn in (1, 3, 5):
        b = batch([LONG[:turn]])
        assert b['input_ids'][b['gate_mask'].bool()].tolist() == read
    text = render(LONG[:1], 'v1', True).text
    assert prompt_end(text) == len(text)
