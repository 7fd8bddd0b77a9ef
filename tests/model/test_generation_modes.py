"""Every way to generate and every kernel, on batches of mixed length and modality; the doors of transformers."""
import threading

import pytest, torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextIteratorStreamer, pipeline
from transformers.utils import is_flash_attn_2_available

from aligngpt.checkpoints.layouts import load, save
from aligngpt.core.devices import pick_attention
from small import CHATS, batch, build, picture, processor, user


@pytest.fixture(scope='module')
def model(): return build()

@pytest.fixture(scope='module')
def folder(model, tmp_path_factory): return save(model, processor(), tmp_path_factory.mktemp('saved')/'model')

def ids(model, b, n=6, **kwargs):
    return model.generate(**b, **{**dict(max_new_tokens=n, min_new_tokens=n, do_sample=False),
                                  **kwargs})[:, b['input_ids'].shape[1]:].tolist()


def test_beams(model):
    "Beams over a mixed batch equal beams row by row; one beam is greedy decoding."
    b = batch(CHATS)
    found = ids(model, b, num_beams=3, num_return_sequences=2)
    for i,chat in enumerate(CHATS):
        assert found[2*i:2*i+2] == ids(model, batch([chat]), num_beams=3, num_return_sequences=2), i
    assert ids(model, b, num_beams=1) == ids(model, b)
    assert ids(model, b, num_beams=3, num_return_sequences=1, use_cache=False) == found[::2]

def test_sampling(model):
    "The same seed gives the same samples; another temperature others; a certain distribution is greedy."
    b = batch(CHATS)
    def sample(seed, **kwargs): torch.manual_seed(seed); return ids(model, b, do_sample=True, **kwargs)
    assert sample(1) == sample(1) != sample(2)
    assert sample(1, top_k=1) == ids(model, b)
    many = sample(3, num_return_sequences=3)
    assert len(many) == 12 and len({tuple(m) for m in many}) > 4
    ids(model, b, repetition_penalty=1.2, no_repeat_ngram_size=2)

def test_streaming(model):
    "A streamer says what `generate` returns, piece by piece."
    b, p = batch(CHATS[:1]), processor()
    streamer = TextIteratorStreamer(p.tokenizer, skip_prompt=True)
    worker = threading.Thread(target=lambda: model.generate(**b, max_new_tokens=12, min_new_tokens=12,
                                                            do_sample=False, streamer=streamer))
    worker.start()
    pieces = list(streamer); worker.join()
    assert ''.join(pieces) == p.tokenizer.decode(ids(model, b, 12)[0])
    assert len([x for x in pieces if x]) > 2

def test_alignment_is_open(model):
    "None, a level, a mixture, one of each for every row; the output tells the weights."
    b, n = batch(CHATS), len(CHATS)
    def run(alignment):
        return model.generate(**b, max_new_tokens=3, min_new_tokens=3, do_sample=False, alignment=alignment,
                              return_dict_in_generate=True, output_logits=True)
    gate = run(None)
    alpha = gate['weights'][:, :-1]
    torch.testing.assert_close(alpha.sum(1), torch.ones(n)); assert gate['weights'][:, -1].tolist() == [1.]*n
    again = run(gate['weights'])
    assert torch.equal(again.sequences, gate.sequences)
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(gate.logits), atol=1e-5, rtol=0)
    one, each, mixed = run(3), run([3, 3, 3, 3]), run(torch.nn.functional.one_hot(torch.tensor(3), 8).float())
    for other in (each, mixed): assert torch.equal(torch.stack(one.logits), torch.stack(other.logits))
    assert one['weights'].argmax(1).tolist() == [3]*n
    levels = run([0, 1, 5, 7])
    assert (levels.logits[0][0] - one.logits[0][0]).abs().max() > 1e-3
    torch.testing.assert_close(levels.logits[0][1], one.logits[0][1], atol=1e-5,
                               rtol=0) # a row without a picture has no ALIGN
    with torch.no_grad(): torch.testing.assert_close(model(**b).weights, gate['weights'])

def test_several_pictures(model):
    "Order matters, each counts, and a picture that is given twice is looked at once."
    red, blue = picture('red'), picture('blue')
    def logits(*pictures):
        with torch.no_grad(): return model(**batch([[user('What colour is it?', *pictures)]])).logits[0, -1]
    both = logits(red, blue)
    for other in (logits(blue, red), logits(red, red)): assert (other - both).abs().max() > 1e-3
    b = batch([[user('What colour is it?', red, blue, red)]])
    with torch.no_grad():
        once = model(**{**b, 'pixel_values':b['pixel_values'][:2]}, image_index=torch.tensor([0, 1, 0])).logits
        torch.testing.assert_close(once, model(**b).logits, atol=1e-5, rtol=0)

def test_flash_attention(folder):
    "Without the package: our loading takes another kernel and says why, transformers' raises."
    if is_flash_attn_2_available(): pytest.skip('flash-attn is installed')
    name, why = pick_attention('cpu', 'flash_attention_2')
    assert name == 'sdpa' and 'flash-attn is not installed' in why
    assert load(folder, 'float32', 'cpu', attention='flash_attention_2')[0].config._attn_implementation == 'sdpa'
    with pytest.raises(ImportError, match='(?i)flash'):
        AutoModelForImageTextToText.from_pretrained(folder, attn_implementation='flash_attention_2')

def test_kernel_of_each_part(folder):
    "The implementation reaches tower and language model; one for each can be named."
    for kernel in ('eager', 'sdpa'):
        m = load(folder, 'float32', 'cpu', attention=kernel)[0]
        assert (m.vision_tower.config._attn_implementation,
                m.language_model.config._attn_implementation) == (kernel, kernel)
    m = AutoModelForImageTextToText.from_pretrained(folder,
                                                    attn_implementation=dict(vision_config='eager',
        text_config='sdpa'))
    assert (m.vision_tower.config._attn_implementation,
            m.language_model.config._attn_implementation) == ('eager', 'sdpa')

def test_doors_of_transformers(model, folder, tmp_path):
    "Auto classes and the pipeline answer as the model does."
    picture('red').save(tmp_path/'red.png')
    chat = [dict(role='user', content=[dict(type='image', path=str(tmp_path/'red.png')),
                                       dict(type='text', text='What colour is it?')])]
    p, m = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    want = ids(model, batch([chat]))
    b = p.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors='pt')
    assert ids(m, b) == want
    talk = pipeline('image-text-to-text', model=m, processor=p)
    said = talk(text=chat, max_new_tokens=6, min_new_tokens=6, do_sample=False, return_full_text=False)
    assert said[0]['generated_text'] == p.decode(want[0], skip_special_tokens=True)

@pytest.mark.slow
def test_compiled_decoding(model):
    "`torch.compile` of the decode step: one graph without a break, and the tokens of `generate`."
    from transformers import StaticCache
    b, new = batch(CHATS), 5
    want, n = ids(model, b, new), b['input_ids'].shape[1]
    cache, position = StaticCache(config=model.config.text_config,
                                  max_cache_len=n+new), (b['attention_mask'].cumsum(1) - 1).clamp(min=0)
    mask = torch.nn.functional.pad(b['attention_mask'], (0, new), value=1)
    step = torch.compile(model.forward, fullgraph=True)
    with torch.no_grad():
        logits = model(**{**b, 'attention_mask':b['attention_mask']}, position_ids=position,
                       cache=cache).logits[:, -1]
        found = []
        for i in range(new):
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            found.append(logits.argmax(-1, keepdim=True))
            logits = step(input_ids=found[-1], attention_mask=mask[:, :n+i+1], position_ids=position[:, -1:] + i + 1,
                          cache=cache).logits[:, -1]
    assert torch.cat(found, 1).tolist() == want
