"""What is exported for llama.cpp says in llama.cpp what it says here: run where the shell finds `llama-server`.

The source distribution of llama-cpp-python holds all of llama.cpp:
    pip download --no-deps --no-binary :all: llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    cmake -S llama_cpp_python-*/vendor/llama.cpp -B build -G Ninja -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF
    ninja -C build llama-server llama-quantize
and then, with build/bin in PATH: pytest -m slow tests/exports
"""
import shutil
from importlib.util import find_spec

import pytest

from aligngpt.exports.gguf import KINDS, write_gguf
from aligngpt.exports.llamacpp import LlamaServer, agreement, check_questions, to_openai
from aligngpt.exports.rows import export_folder, make_knob
from loud import made

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (shutil.which('llama-server') and find_spec('gguf')),
                                                   reason='needs llama-server and the package gguf')]
EXACT = '-ctk', 'f32', '-ctv', 'f32', '-fa', 'off', '-t', '1' # no keys and values in 16 bits


def asked(model, processor, folder, n=18, options=EXACT, **how):
    "How often both programs agree."
    knob = make_knob(model)
    with export_folder(folder) as f: names = write_gguf(model, processor, f, knob, **how)
    with LlamaServer(folder/names[0], folder/names[1], options=options, context=1024) as server:
        return agreement(model, processor, knob, server, check_questions(n), 16)


@pytest.mark.parametrize('family,text', [
    ('llama', dict(num_key_value_heads=2)), ('llama', dict(tie_word_embeddings=True)),
    ('llama', dict(attention_bias=True, head_dim=32)),
    ('llama', dict(rope_parameters=dict(rope_type='llama3', rope_theta=1e4, factor=8., low_freq_factor=1.,
                                        high_freq_factor=4., original_max_position_embeddings=64))),
    ('llama', dict(rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=2.))),
    ('mistral', dict(num_key_value_heads=2, sliding_window=None)), ('qwen2', dict(num_key_value_heads=2)),
    ('qwen3', dict(num_key_value_heads=2, head_dim=32)), ('phi3', dict(num_key_value_heads=2)), ('phi', {})],
    ids=['llama', 'tied', 'biases', 'llama3', 'linear', 'mistral', 'qwen2', 'qwen3', 'phi3', 'phi'])
def test_families(family, text, tmp_path):
    found = asked(*made(family, **text), tmp_path/'out', dtype='f32')
    assert found.whole >= 17, found # of random weights, one may be a tie


@pytest.mark.parametrize('tokens', ['legacy', 'newer'])
def test_sentencepiece(tokens, tmp_path):
    found = asked(*made(tokens=tokens), tmp_path/'out', dtype='f32')
    assert found.whole >= 17, found # of random weights, one may be a tie


@pytest.mark.parametrize('kind,least', {'f16':16, 'bf16':8, 'q8_0':8}.items())
def test_formats(kind, least, tmp_path):
    assert kind in KINDS
    found = asked(*made(), tmp_path/'out', dtype=kind)
    assert found.whole >= least, found


def test_the_knob(tmp_path):
    "A level by the template's variable, at the head of the system message, and the default are the same token."
    model, processor = made()
    knob = make_knob(model, 3)
    with export_folder(tmp_path/'out') as f: names = write_gguf(model, processor, f, knob, 'f32')
    turn = to_openai(check_questions(1)[0], processor)
    with LlamaServer(tmp_path/'out'/names[0], tmp_path/'out'/names[1], options=EXACT, context=1024) as server:
        def said(messages, **more):
            o = server.call('/v1/chat/completions', dict(messages=messages, max_tokens=12, temperature=0, top_k=1,
                                                         **more))
            return o['choices'][0]['message']['content']
        by_name = {n:said([turn], chat_template_kwargs=dict(level=n)) for n in knob.mixtures}
        assert said([turn]) == by_name['3'] != by_name['0']
        assert said([dict(role='system', content='<|align_5|>'), turn]) == by_name['5']
        with pytest.raises(Exception, match='ns.asked'):
            said([turn], chat_template_kwargs=dict(level=8))
