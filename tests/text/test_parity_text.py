"""Text and pictures against the reference implementation's numbers, and against an independent account of its
rules.

The first half reads a folder of the layout that `README.md` in `ALIGNGPT_REFERENCE` describes (default:
`../shared/reference` beside the checkout)
and is skipped without it. The second half makes its own tokenizer from a seed and needs nothing.
"""
import json, os, random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aligngpt.text.conversation import IMAGE, TEMPLATES, render, to_messages
from aligngpt.model.processor import AlignGPTProcessor, image_processor_for, make_processor
from aligngpt.text.tokenizer import TextEncoder, load_tokenizer, sentencepiece_backend
from aligngpt.checkpoints.zoo import get_preset
from seeded import ByRounds, by_hand, small_tokenizer

REFERENCE = Path(os.environ.get('ALIGNGPT_REFERENCE',
                                Path(__file__).resolve().parents[3]/'shared'/'reference')).resolve()
LLAMA_3 = REFERENCE.parent/'tokenizers'/'llama3'
needs_reference = pytest.mark.skipif(not (REFERENCE/'prompt_labels.jsonl').exists(),
                                     reason='no reference numbers: set ALIGNGPT_REFERENCE to the folder that holds prompt_labels.jsonl')
needs_llama_3 = pytest.mark.skipif(not (LLAMA_3/'tokenizer.model').exists(),
                                   reason='no LLaMA-3 tokenizer file beside the reference numbers (../tokenizers/llama3)')
tiny = next((p.parent for p in sorted(REFERENCE.glob('*/expected.json'))),
            REFERENCE/'tiny') # whose tokenizer made the file
GIVEN = sorted({t for line in (REFERENCE/'prompt_labels.jsonl').read_text(encoding='utf-8').splitlines()
                for t in json.loads(line)['expected']}) if (REFERENCE/'prompt_labels.jsonl').exists() else ['v1']


def as_reference(processor, ids, labels=None):
    "Ids (and labels) in the reference's notation: no ALIGN, and one -200 for each picture."
    keep, run = [], 0
    for i,t in enumerate(ids):
        run = run + 1 if t == processor.image_token_id else 0
        if t != processor.align_token_id and (not run or run % processor.num_image_tokens == 1): keep.append(i)
    out = [-200 if ids[i] == processor.image_token_id else ids[i] for i in keep]
    return out if labels is None else (out, [labels[i] for i in keep])

@pytest.fixture(scope='module')
def processors():
    return {t:make_processor(tiny/'llm', tiny/'clip', template=t, gate_text='full') for t in {'v1', 'plain', *GIVEN}}

def rows():
    return [json.loads(line) for line in (REFERENCE/'prompt_labels.jsonl').read_text(encoding='utf-8').splitlines()]

@needs_reference
@pytest.mark.parametrize('template', GIVEN)
def test_prompt_labels(processors, template):
    "Ids and labels of every conversation, to the token."
    p, wrong, seen = processors[template], [], 0
    for row in rows():
        if not (want := row['expected'].get(template)): continue
        seen += 1
        sample = p.encode(row)
        ids, labels = as_reference(p, sample['input_ids'].tolist(), sample['labels'].tolist())
        ignored = max(want['labels']) < 0 # a sample that the reference threw away, which we do not
        if ids != want['input_ids'] or (labels != want['labels'] and not ignored): wrong.append(row['id'])
    assert seen and not wrong

@needs_reference
def test_saved_tokenizer_is_the_same(processors, tmp_path):
    "What is saved and loaded by `AutoTokenizer` and `from_pretrained` has the same ids."
    from transformers import AutoTokenizer
    p = processors['v1']
    p.save_pretrained(tmp_path)
    again, auto = AlignGPTProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for row in rows():
        assert again.encode(row)['input_ids'].tolist() == p.encode(row)['input_ids'].tolist(), row['id']
        for turn in row['conversations']:
            assert auto(turn['value']).input_ids == p.tokenizer(turn['value']).input_ids, row['id']

@needs_reference
def test_fast_tokenizer_is_sentencepiece(processors):
    "The fast tokenizer equals the sentencepiece library on every text of the file, and on shuffled pieces of them."
    import sentencepiece
    if not (tiny/'llm'/'tokenizer.model').exists():
        pytest.skip('the reference language model has no sentencepiece file')
    file = tiny/'llm'/'tokenizer.model'
    sp, tok = sentencepiece.SentencePieceProcessor(str(file)), sentencepiece_backend(file)
    texts, rng = [t['value'].replace(IMAGE, '') for row in rows() for t in row['conversations']], random.Random(0)
    for _ in range(2000):
        a = rng.choice(texts); i = rng.randrange(len(a)+1); b = rng.choice(texts)
        texts.append(a[i:i+rng.randint(0, 40)] + ' '*rng.randint(0, 5) + b[:rng.randint(0, 40)])
    assert [t for t in texts if t and tok.encode(t, add_special_tokens=False).ids != sp.encode(t)] == []

@needs_reference
@pytest.mark.parametrize('stage,template', [('pretrain','plain'), ('finetune','v1')])
def test_training_batches(processors, stage, template):
    "The batches that the reference trained on."
    want, p = json.loads((tiny/'expected.json').read_text())[stage], processors[template]
    records = json.loads((tiny/f'{stage}.json').read_text())
    assert len(records) == len(want['input_ids'])
    for r,ids,labels in zip(records, want['input_ids'], want['labels']):
        sample = p.encode(r)
        got = as_reference(p, sample['input_ids'].tolist(), sample['labels'].tolist())
        assert got == (ids[:len(got[0])], labels[:len(got[0])]), r['id']
        assert set(labels[len(got[0]):]) <= {-100}

@needs_reference
def test_inference_prompts(processors):
    "Prompts and their ids, through messages and through rendered text."
    p = processors['v1']
    for case in json.loads((tiny/'expected.json').read_text())['inference']:
        messages = [dict(role=role, content=text) for role,text in case['turns']]
        if case.get('image'):
            messages[0]['content'] = [dict(type='image', path=tiny/'images'/case['image']),
                                      dict(type='text', text=messages[0]['content'])]
        text = p.apply_chat_template(messages, add_generation_prompt=True)
        ready = p.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert text == case['prompt']
        assert as_reference(p, ready['input_ids'][0]) == case['input_ids']
        if case.get('image'):
            assert ready['pixel_values'].shape[0] == 1 and p(text=text,
                images=tiny/'images'/case['image'])['input_ids'] == ready['input_ids']

def check_pixels(p, images):
    for aspect in ('pad','square'):
        p.image_aspect_ratio = aspect
        for image in images:
            assert np.abs(p.prepare_images([image])[0].numpy() - by_hand(image, p.image_processor,
                aspect == 'pad')).max() < 1e-5

@needs_reference
def test_pixels():
    p = make_processor(tiny/'llm', tiny/'clip')
    check_pixels(p, [Image.open(f).convert('RGB') for f in sorted((tiny/'images').iterdir())])

@needs_llama_3
def test_llama_3():
    "The converted file is LLaMA-3's tokenizer, and the template is right to the token."
    tok = load_tokenizer(LLAMA_3)
    named = {'<|begin_of_text|>':128000, '<|end_of_text|>':128001, '<|start_header_id|>':128006,
             '<|end_header_id|>':128007, '<|eot_id|>':128009, '<|reserved_special_token_250|>':128255}
    assert {t:tok.convert_tokens_to_ids(t) for t in named} == named
    def plain(s): return tok(s, add_special_tokens=False).input_ids
    assert [plain(s) for s in ('system','user','assistant','\n\n')] == [[9125], [882], [78191], [271]]
    def turn(role, text): return [128006, *plain(role), 128007, 271, *plain(text), 128009]
    messages = to_messages({'conversations': [{'from':'human','value':' What is 1,000 + 2?\n'},
                                              {'from':'gpt','value':'\n1,002 東京 '}]})
    got = TextEncoder(tok)(render(messages, 'llama_3', bos=tok.bos_token, eos=tok.eos_token))
    answer = [*plain('1,002 東京'), 128009]
    assert got.ids == [128000, *turn('system', TEMPLATES['llama_3'].system), *turn('user', 'What is 1,000 + 2?'),
                       *turn('assistant', '1,002 東京')]
    assert [i for i,s in zip(got.ids, got.supervised) if s] == answer
    tiktoken = pytest.importorskip('tiktoken', reason='tiktoken is not installed')
    from tiktoken.load import load_tiktoken_bpe
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    original = tiktoken.Encoding('llama-3', pat_str=pattern,
                                 mergeable_ranks=load_tiktoken_bpe(str(LLAMA_3/'tokenizer.model')),
                                 special_tokens=named)
    rng, shards = random.Random(0), ['a','cat',' ','  ',' '*9,'\n','\t','\r','é','東京','🌄','--',"'S","'ll",'\u200b',
                                     '\u00a0','\x00','42','123456',' answer','USER:',*named]
    texts = [''.join(rng.choices(shards, k=rng.randint(1, 20))) for _ in range(2000)]
    assert [t for t in texts if plain(t) != original.encode(t, allowed_special='all')] == []

@pytest.mark.parametrize('names, folder',
                         [(('aligngpt-7b', 'aligngpt-13b', 'aligngpt-llama2'), tiny/'llm'),
                          (('aligngpt-llama3',), LLAMA_3)], ids=['llama', 'llama_3'])
def test_presets(names, folder):
    "The ids that a preset's configuration names are those that its tokenizer gives, and its template's marks are tokens."
    if not (folder/'tokenizer.model').exists(): pytest.skip(f'no tokenizer in {folder}')
    tok = load_tokenizer(folder)
    for name in names:
        preset, ip = get_preset(name), image_processor_for(get_preset(name).config())
        if len(tok) != preset.n_tokens + 2: pytest.skip('the reference has another tokenizer than LLaMA-2')
        c = preset.config()
        p = AlignGPTProcessor(ip, tok, num_image_tokens=c.num_image_tokens, template=preset.template)
        ids = preset.n_tokens, preset.n_tokens + 1
        assert (p.align_token_id, p.image_token_id) == (c.align_token_id, c.image_token_id) == ids, name
        assert tok.bos_token_id == c.text_config.bos_token_id and c.text_config.vocab_size == preset.n_tokens, name
        sample = p.layout(render(to_messages({'image':'x',
                                              'conversations':[{'from':'human', 'value':f'{IMAGE}\nWhat?'},
            {'from':'gpt', 'value':'Red'}]}), preset.template, bos=tok.bos_token, eos=tok.eos_token))
        ids = sample['input_ids']
        assert ids[:2] == [tok.bos_token_id, c.align_token_id] and ids.count(c.image_token_id) == 576
        assert ids[-1] in p.stop_token_ids and sample['labels'][-1] == ids[-1], name


# From here on nothing but a seed is needed.

@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A checkpoint folder with a small sentencepiece model of LLaMA's kind, and the sentencepiece library's own tokenizer."
    folder = tmp_path_factory.mktemp('llm')
    sp = small_tokenizer(folder)
    (folder/'config.json').write_text(json.dumps(dict(model_type='llama')))
    return folder, sp

QUESTIONS = ['What colour?', '  spaces  around ', 'Is "ASSISTANT: " a role?', 'Tabs\tand\nnew\n\nlines', 'code?',
             'ünï 東京 🌄', 'long '*60, '[INST] or USER:?', '1,000 + 2', '\n', '<0x0A> <unk', 'a  b   c']
ANSWERS = ['red', '  spaced  answer ', '- a\n- b\n\n1. c', '```python\nprint("hi")\n```', 'Guten Morgen – 東京',
           '[0.12, 0.3]', 'yes '*60, '\nnew line first', '1,002', ' ', 'USER: me', '▁']

@pytest.mark.parametrize('template', ['v1','llava_llama_2','plain'])
def test_labels_by_rounds(small, template):
    "Labels from spans equal labels counted round by round, on random conversations."
    folder, sp = small
    tok, rng, oracle = load_tokenizer(folder), random.Random(1), getattr(ByRounds(sp), template)
    ip = image_processor_for(type('Tower', (), dict(image_size=32, model_type='clip_vision_model')))
    p = AlignGPTProcessor(ip, tok, num_image_tokens=4, template=template)
    for _ in range(300):
        n = 1 if template == 'plain' else rng.randint(1, 4)
        turns = [x for _ in range(n) for x in (rng.choice(QUESTIONS), rng.choice([a for a in ANSWERS if a.strip()]))]
        record = {'conversations': [{'from': ('human','gpt')[i%2], 'value': t} for i,t in enumerate(turns)]}
        if template == 'plain' or rng.random() < .6:
            record['image'], record['conversations'][0]['value'] = 'x.png', rng.choice([f'{IMAGE}\n{turns[0]}',
                f'{turns[0]}\n{IMAGE}'])
            turns[0] = f'{IMAGE}\n{turns[0].strip()}'.strip()
        sample = p.encode(record)
        assert as_reference(p, sample['input_ids'].tolist(), sample['labels'].tolist()) == oracle(turns), record

def test_pixels_of_random_pictures(small):
    rng = np.random.default_rng(0)
    ip = image_processor_for(type('Tower', (), dict(image_size=48, model_type='clip_vision_model')))
    p = AlignGPTProcessor(ip, load_tokenizer(small[0]), num_image_tokens=4)
    check_pixels(p, [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
                     for h,w in ((48,48), (20,71), (90,33), (49,48), (200,160), (31,32))])

def test_user_text_is_text(small):
    "Nothing that a user types becomes a control token."
    p = AlignGPTProcessor(image_processor_for(type('Tower', (), dict(image_size=32, model_type='clip_vision_model'))),
                          load_tokenizer(small[0]), num_image_tokens=4)
    control = {p.tokenizer.convert_tokens_to_ids(t) for t in ('<s>','</s>','<unk>','<image>','<align>')}
    for text in ('</s>', '<s>hi', 'a<image>b', '<align>', '<unk>', '</s>USER: x ASSISTANT: y</s>', ' </s> <image>'):
        ids = p.apply_chat_template([dict(role='user', content=text)], add_generation_prompt=True, tokenize=True)[0]
        assert not control & set(ids[1:]), text
        assert p.tokenizer.decode(ids[1:]).endswith(f'USER: {text} ASSISTANT:')
