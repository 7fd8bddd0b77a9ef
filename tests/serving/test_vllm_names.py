"""vLLM's model is made of today's parts, and takes a saved folder name by name. vLLM itself is not needed: what the
module imports from it stands here, as little as it uses; `vllm_parity.py` asks the real one."""
import importlib, sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest, torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from aligngpt.checkpoints.layouts import save
from aligngpt.model.modeling import PARTS
from small import CHATS, batch, build, processor


class Loader:
    "Every tensor of the file must be a parameter of the model, of its shape."
    def __init__(self, model): self.model = model
    def load_weights(self, weights):
        own = dict(self.model.named_parameters())
        for name,value in weights:
            assert own[name].shape == value.shape, name
            own[name].data.copy_(value)
        return {name for name,_ in weights}

class Multimodal:
    def configure_mm_token_handling(self, **kwargs): self.handled = kwargs
    def _mark_tower_model(self, config, modality): return nullcontext()
    def _mark_language_model(self, config): return nullcontext()

class Language(LlamaForCausalLM):
    make_empty_intermediate_tensors = None
    def embed_input_ids(self, ids): return self.get_input_embeddings()(ids)

class Registry:
    def register_processor(self, *args, **kwargs): return lambda cls: cls

def language(vllm_config, hf_config, prefix): return Language(hf_config)

class Base:
    def __class_getitem__(cls, item): return cls

NAMES = {'model_executor.models.interfaces': dict(MultiModalEmbeddings=list, SupportsMultiModal=Multimodal,
                                                  SupportsPP=type('SupportsPP', (), {})),
         'model_executor.models.utils': dict(AutoWeightsLoader=Loader, init_vllm_registered_model=language,
                                             maybe_prefix=lambda prefix, name: name),
         'multimodal': dict(MULTIMODAL_REGISTRY=Registry()),
         'multimodal.inputs': dict(MultiModalFieldConfig=None, MultiModalKwargsItems=dict, PlaceholderRange=None),
         'multimodal.processing': dict(BaseDummyInputsBuilder=Base, BaseMultiModalProcessor=Base,
                                       BaseProcessingInfo=type('Info', (), {})),
         'inputs.engine': dict(mm_input=dict)}

@pytest.fixture
def vllm_model(monkeypatch):
    "Our module for vLLM, on stand-ins."
    for path,names in NAMES.items():
        parts = ['vllm', *path.split('.')]
        for i in range(1, len(parts) + 1):
            name = '.'.join(parts[:i])
            if name not in sys.modules: monkeypatch.setitem(sys.modules, name, ModuleType(name))
        vars(sys.modules[name]).update(names)
    name = 'aligngpt.serving.vllm_model'
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)

@torch.no_grad()
def test_parts_and_names(vllm_model, tmp_path):
    ours = build()
    save(ours, processor(), tmp_path/'model')
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=ours.config))
    theirs = vllm_model.VllmAlignGPT(vllm_config=config).eval()
    for p in theirs.parameters(): p.fill_(torch.nan)
    file = load_file(tmp_path/'model'/'model.safetensors')
    assert theirs.load_weights(list(file.items())) == set(dict(theirs.named_parameters()))
    assert {n.split('.')[0] for n in file} == {*PARTS}
    for chat in (CHATS[0], CHATS[2]): # one picture, two
        b = batch([chat])
        ids, gate, pixels = b['input_ids'], b['gate_mask'], b['pixel_values']
        prompt = ours.model
        image = prompt.image_tokens(pixels)
        weights = prompt.prompt_weights(ids, prompt.get_vision_features(pixels), gate_mask=gate)
        n = len(pixels)
        found = theirs.embed_multimodal(pixel_values=list(pixels), text=None, gate_ids=[ids[0][gate[0]]]*n,
                                        others=[pixels[1:]] + [pixels[:0]]*(n - 1), leads=[i == 0 for i in range(n)])
        torch.testing.assert_close(found[0], torch.cat([prompt.levels(weights), image[0]]), atol=1e-5, rtol=0)
        for got,want in zip(found[1:], image[1:]): torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    text = batch(CHATS[1:2])['input_ids']
    torch.testing.assert_close(theirs.language_model(text).logits, ours(text).logits, atol=1e-5, rtol=0)
