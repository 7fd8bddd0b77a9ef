"transformers' own tests of a model, with a tiny CLIP before a tiny Llama, as its tests of Llava have them."
import unittest
from unittest.mock import patch

import pytest, torch

from aligngpt.model import modeling
from aligngpt.model.layers import AlignGPTConfig
from aligngpt.testing.fixtures import tiny_config
from peer.suites import leaving_out, suite

ModelTesterMixin, = suite('test_modeling_common', 'ModelTesterMixin')
GenerationTesterMixin, = suite('generation.test_utils', 'GenerationTesterMixin')
ConfigTester, = suite('test_configuration_common', 'ConfigTester')
TrainingTesterMixin, = suite('test_training_mixin', 'TrainingTesterMixin')
MemoryCleanupMixin, = suite('test_memory_cleanup_mixin', 'MemoryCleanupMixin')
FSDPTesterMixin, = suite('test_fsdp_mixin', 'FSDPTesterMixin')
TensorParallelTesterMixin, = suite('test_tensor_parallel_mixin', 'TensorParallelTesterMixin')

pytestmark = pytest.mark.peer
CLASSES = [modeling.AlignGPTModel, modeling.AlignGPTForConditionalGeneration]
INSIDE = dict(align_token_id=4, image_token_id=5)

LEFT_OUT = { # name of a test -> the property of the method because of which it cannot hold
}


class AlignGPTTester:
    "What the suites want to know about the model: its sizes, a configuration and a batch."
    batch_size, num_hidden_layers, hidden_size, num_attention_heads, is_training = 3, 2, 48, 4, True
    before, n, after = 3, 4, 4 # text tokens, image tokens, text tokens; in front of all BOS and ALIGN
    base_model_class, conditional_generation_class = CLASSES[0], CLASSES[-1]
    causal_lm_class = conditional_generation_class # what `TrainingTesterMixin` trains

    def __init__(self, parent):
        self.parent, config = parent, self.get_config()
        self.text_config, self.vision_config = config.text_config.to_dict(), config.vision_config.to_dict()
        self.seq_length = self.encoder_seq_length = self.key_length = 2 + self.before + self.n + self.after

    ids = {} # the placeholders', where they are not behind the vocabulary

    def get_config(self): return tiny_config(vocab_size=99, attention_dropout=0., **self.ids)

    def prepare_config_and_inputs_for_common(self):
        c = self.get_config()
        text = torch.randint(3, 99, (self.batch_size, self.seq_length))
        text[:, 0], text[:, 1] = 1, c.align_token_id
        text[:, 2+self.before:2+self.before+self.n] = c.image_token_id
        return c, dict(pixel_values=torch.randn(self.batch_size, 3, 16, 16), input_ids=text,
                       attention_mask=torch.ones_like(text))


@leaving_out(LEFT_OUT)
class TestPeerModel(MemoryCleanupMixin, ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin,
                    FSDPTesterMixin, TensorParallelTesterMixin, unittest.TestCase):
    model_tester = None
    run_under_no_grad = False # the suites train
    all_model_classes = tuple(CLASSES)
    pipeline_model_mapping = {'image-text-to-text': CLASSES[-1]}
    _is_composite = True
    test_all_params_have_gradient = False # the method reads the tower's last but one layer: its last has no gradient

    def setUp(self):
        super().setUp()
        self.model_tester = AlignGPTTester(self)
        self.config_tester = ConfigTester(self, config_class=AlignGPTConfig, has_text_modality=False,
                                          common_properties=['vision_config', 'text_config', 'image_token_id'])

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        "The suites know by its class's name which model takes labels, and ours is not in their list."
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if not return_labels or 'ConditionalGeneration' not in model_class.__name__: return inputs
        return inputs | dict(labels=torch.zeros_like(inputs['input_ids']))

    def test_config(self): self.config_tester.run_common_tests()

    def test_resize_tokens_embeddings(self):
        "The suite clamps all ids to the smaller vocabulary, so the placeholders must be inside."
        with patch.object(AlignGPTTester, 'ids', INSIDE): super().test_resize_tokens_embeddings()

    def test_resize_embeddings_untied(self):
        with patch.object(AlignGPTTester, 'ids', INSIDE): super().test_resize_embeddings_untied()

    def test_training(self):
        "The suite knows by its name which class has no loss, and ours is not in its list."
        with patch.object(type(self), 'all_model_classes', CLASSES[-1:]): super().test_training()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        with patch.object(type(self), 'all_model_classes', CLASSES[-1:]):
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def test_training_overfit(self):
        "The suite looks for the size of the vocabulary in the outermost configuration."
        with patch.object(AlignGPTConfig, 'vocab_size', 99, create=True): super().test_training_overfit()
