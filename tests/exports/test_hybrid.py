"""The hybrid behind all faces: on a stand-in for llama.cpp always, and where `llama_cpp` is installed on the real one
(`pip install 'aligngpt[llamacpp]'`, then `pytest -m slow tests/exports/test_hybrid.py`)."""
import threading
from importlib.util import find_spec
from unittest.mock import patch

import pytest, torch
from loud import made
from typer.testing import CliRunner

from aligngpt.chat.places import explain
from aligngpt.chat.session import ChatSession
from aligngpt.chat.why import session_case
from aligngpt.checkpoints.layouts import open_checkpoint, open_model, save
from aligngpt.cli.main import app
from aligngpt.core.errors import AlignGPTError
from aligngpt.evaluation.run import weights_hash
from aligngpt.exports.hybrid import (MOST_ROWS, Decoder, HybridRows, hybrid_of, language_file, open_hybrid,
                                     write_packed)
from aligngpt.exports.llamacpp import check_questions
from aligngpt.model.decoding import Ask, answers, greedy
from aligngpt.model.toy import swatch, toy_model, toy_processor
from aligngpt.serving.engine import Engine
from aligngpt.testing.fixtures import TorchDecoder

real = [pytest.mark.slow, pytest.mark.skipif(not (find_spec('llama_cpp') and find_spec('gguf')),
                                             reason='needs llama-cpp-python and the package gguf')]
WORDS = 'What colour is it?', 'Describe it.', 'Is it warm or cool?', 'Count to ten.'


def loud():
    "A toy whose answers depend on everything."
    processor = toy_processor()
    model = toy_model(processor).eval()
    with torch.no_grad():
        for n,p in model.named_parameters():
            if p.dim() > 1 and 'gate' not in n: p.normal_(std=.15, generator=torch.Generator().manual_seed(len(n)))
    return model, processor


def served(model, processor, **how):
    "Text, weights and log probabilities of some questions that are answered together."
    with Engine(model, processor, max_batch=3, max_new_tokens=12, **how) as engine:
        jobs = [engine.ask(q, [swatch(c)]*n, likely=2, seed=i) for i,(q, c, n) in enumerate(
                (q, c, n) for q in WORDS for c,n in (('red', 1), ('blue', 0)))]
        said = [j.result() for j in jobs]
    return [a.text for a in said], [a.weights for a in said], [[p for _,p,_ in j.chances] for j in jobs]


@pytest.mark.parametrize('how', [dict(temperature=0), dict(temperature=1., top_p=.9, repetition_penalty=1.2)])
def test_engine(how):
    model, processor = loud()
    here = served(model, processor, **how)
    there = served(hybrid_of(model, TorchDecoder(model)), processor, rows=HybridRows, **how)
    assert here[0] == there[0] and len(set(here[0])) > 4
    for a,b in zip(here[1] + here[2], there[1] + there[2]): assert a == pytest.approx(b, abs=1e-4)


def talk(model, processor, **how):
    "Some turns, with a picture, another level, and an answer written anew."
    s = ChatSession(model, processor, temperature=0, max_new_tokens=10, **how)
    out = [s.ask('What colour is it?', swatch('red')), s.ask('Describe it.'), s.ask('And this?', swatch('blue')),
           s.regenerate(alignment=3).result(), s.ask('Count to ten.', alignment=3)]
    return [a.text for a in out], [a.reused_tokens for a in out]


def test_chat():
    model, processor = loud()
    here, there = talk(model, processor), talk(hybrid_of(model, TorchDecoder(model)), processor)
    assert here == there and here[1][1] > 20 # of the second question, the first is known


def test_why():
    "Words, levels and places of an answer, from passes of many rows that are read a few at a time and forgotten."
    model, processor = loud()
    def told(model):
        s = ChatSession(model, processor, temperature=0, max_new_tokens=10)
        s.ask('Describe it.', swatch('red'))
        why = explain(model, processor, session_case(s))
        return [(w.logprob, w.levels, [(p.window, p.covered) for p in w.places]) for w in why.words]
    hybrid = hybrid_of(model, decoder := TorchDecoder(model))
    here, there = told(model), told(hybrid)
    assert here and here[0][2]
    for a,b in zip(here, there, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4) and a[1] == pytest.approx(b[1], abs=1e-4)
        assert [p[1] for p in a[2]] == pytest.approx([p[1] for p in b[2]], abs=1e-4)
    assert len(decoder.freed) > 100


def run(*args): return CliRunner().invoke(app, [str(a) for a in args])


def test_refusals(tmp_path):
    save(*loud(), tmp_path/'toy')
    commands = ('chat', tmp_path/'toy', '--question', 'Hm?'), ('eval', tmp_path/'toy'), ('serve', tmp_path/'toy')
    for c in commands:
        with patch('aligngpt.exports.hybrid.find_spec', return_value=None):
            e = run(*c, '--engine', 'llama.cpp').exception
        assert 'not installed: llama_cpp' in e.message and "pip install 'aligngpt[llamacpp]'" in e.hint
        assert 'five to ten minutes' in e.hint
        assert 'only with --engine llama.cpp' in run(*c, '--bits', 8).exception.message
        assert 'Unknown --bits 7' in run(*c, '--engine', 'llama.cpp', '--bits', 7).exception.message
        assert run(*c, '--engine', 'warp').exit_code == 2
    with patch('aligngpt.exports.hybrid.find_spec'):
        e = run('eval', tmp_path/'toy', '--card', '--engine', 'llama.cpp').exception
        assert '--card: not with --engine llama.cpp' in e.message
        e = run('serve', tmp_path/'toy', '--no-page', '--max-batch', MOST_ROWS + 1, '--engine', 'llama.cpp',
                '--port', 0)
        assert f'at most {MOST_ROWS} answers' in e.exception.message


def told(model, processor, n=18):
    "Greedy tokens of drawn pictures and questions."
    out = []
    for turn in check_questions(n):
        batch = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True,
                                              return_tensors='pt')
        out.append(greedy(model, batch, 16, processor.stop_token_ids)[0])
    return out


def same(model, processor, folder, bits):
    "How many of 18 answers are the same."
    there = told(*open_hybrid(save(model, processor, folder), bits))
    return sum(a == b for a,b in zip(told(model, processor), there))


FAMILIES = dict(llama=dict(num_key_value_heads=2), mistral=dict(num_key_value_heads=2, sliding_window=None),
                qwen2=dict(num_key_value_heads=2), qwen3=dict(num_key_value_heads=2, head_dim=32),
                phi3=dict(num_key_value_heads=2), phi={})


class TestReal:
    pytestmark = real

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch): monkeypatch.setenv('ALIGNGPT_CACHE', str(tmp_path/'cache'))

    @pytest.mark.parametrize('family', FAMILIES)
    def test_families(self, family, tmp_path):
        assert same(*made(family, **FAMILIES[family]), tmp_path/'run', 32) >= 17

    @pytest.mark.parametrize('tokens', ['legacy', 'bytes'])
    def test_a_clip(self, tokens, tmp_path):
        "With a tower that llama.cpp itself computes wrongly, and any tokenizer."
        vision = toy_model(toy_processor()).config.vision_config
        assert same(*made(tokens=tokens, vision=vision), tmp_path/'run', 32) >= 17

    @pytest.mark.parametrize('bits,least', {16:15, 8:8, 4:1}.items())
    def test_bits(self, bits, least, tmp_path):
        assert same(*made(), tmp_path/'run', bits) >= least

    def test_faces(self, tmp_path):
        model, processor = made()
        save(model, processor, tmp_path/'run')
        hybrid, _ = open_hybrid(tmp_path/'run', 32)
        assert talk(hybrid, processor) == talk(model, processor)
        here, there = served(model, processor, temperature=0), served(hybrid, processor, temperature=0, rows=HybridRows)
        assert here[0] == there[0]
        for a,b in zip(here[2], there[2]): assert a == pytest.approx(b, abs=1e-3)
        asks = [Ask(i, q, c) for i,(q, c) in enumerate((q, c) for q in WORDS for c in ('red', 'blue', 'green', None))]
        def said(m): return {i:t for part in answers(m, processor, asks, swatch, 12, batch_size=5) for i,t in part}
        assert said(model) == said(hybrid)
        assert not hybrid.decoder.lengths.keys() - set(hybrid.decoder.leaving), 'nothing is left in the cache'

    def test_room(self, tmp_path):
        "Many cells, from few: what was read stays."
        model, processor = made()
        save(model, processor, tmp_path/'run')
        hybrid, _ = open_hybrid(tmp_path/'run', 32)
        whole, ids = hybrid.decoder.cells, torch.randint(5, 200, (1, 700), generator=torch.Generator().manual_seed(0))
        kept = [hybrid.new_cache() for _ in range(4)]
        for c in kept: hybrid(input_ids=ids, cache=c)
        assert hybrid.decoder.cells > whole
        want = model(input_ids=torch.cat([ids, ids[:, :3]], 1)).logits[0, -3:]
        for c in kept: assert torch.allclose(hybrid(input_ids=ids[:, :3], cache=c).logits[0], want, atol=1e-3)

    def test_two_chats_at_once(self, tmp_path):
        model, processor = made()
        save(model, processor, tmp_path/'run')
        hybrid, _ = open_hybrid(tmp_path/'run', 32)
        out = {}
        def one(i): out[i] = talk(hybrid, processor)
        threads = [threading.Thread(target=one, args=(i,)) for i in range(3)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert [out[i] for i in range(3)] == [talk(model, processor)]*3

    def test_the_file(self, tmp_path):
        "Written once; not by half; anew for other weights; part of the model's identity."
        model, processor = made()
        save(model, processor, tmp_path/'run')
        file = language_file(open_checkpoint(tmp_path/'run'), 'f16')
        with patch('aligngpt.exports.hybrid.write_packed', side_effect=KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt): open_hybrid(tmp_path/'run')
        assert not file.exists()
        first = weights_hash(open_hybrid(tmp_path/'run')[0])
        assert file.exists()
        with patch('aligngpt.exports.hybrid.write_packed', side_effect=AssertionError): open_hybrid(tmp_path/'run')
        assert weights_hash(open_hybrid(tmp_path/'run', 8)[0]) != first != weights_hash(open_model(tmp_path/'run')[0])
        with torch.no_grad(): model.lm_head.weight.mul_(2)
        save(model, processor, tmp_path/'run')
        assert language_file(open_checkpoint(tmp_path/'run'), 'f16') != file
        assert weights_hash(open_hybrid(tmp_path/'run')[0]) != first

    def test_a_damaged_file(self, tmp_path):
        write_packed(made()[0], tmp_path/'x'/'model.gguf', 'q8_0')
        data = (tmp_path/'x'/'model.gguf').read_bytes()
        (tmp_path/'x'/'model.gguf').write_bytes(data[:len(data)//2])
        with pytest.raises(AlignGPTError, match='llama.cpp'): Decoder(tmp_path/'x'/'model.gguf')

    def test_chat_command(self, tmp_path):
        save(*made(), tmp_path/'run')
        said = [run('chat', tmp_path/'run', '--question', 'Hm?', '--temperature', 0, '--max-tokens', 8, *more).stdout
                for more in ((), ('--engine', 'llama.cpp', '--bits', 32))]
        assert said[0] == said[1] and said[0].strip()
