"""transformers' own tests of its pipelines, with the toy's processor before a model made from a seed.

What a pipeline is asked, the source distribution does not say, nor the hub's tiny models: `ImageTextToTextPipelineTests`
asks, and the model is a saved folder. The suite loads it by its parts, asks in batches, and looks at what the pipeline's
call takes.
"""
import tempfile, unittest
from pathlib import Path
from unittest.mock import patch

import pytest
from transformers import pipeline

from aligngpt.checkpoints.layouts import save
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processor import AlignGPTProcessor
from peer.suites import PACKAGE, suite
from small import build, picture, processor, user

PipelineTesterMixin, mapping = suite('test_pipeline_mixin', 'PipelineTesterMixin', 'pipeline_test_mapping')

pytestmark = pytest.mark.peer
TASK, MODEL = 'image-text-to-text', AlignGPTForConditionalGeneration.__name__


class ImageTextToTextPipelineTests:
    "What the pipeline is asked, and what must come."
    def get_test_pipeline(self, model, tokenizer, processor=None, image_processor=None, dtype='float32'):
        ours = AlignGPTProcessor.from_pretrained(model.name_or_path)
        asked = pipeline(TASK, model=model, processor=ours, dtype=dtype, max_new_tokens=3)
        return asked, [[user('What colour is it?', picture(c))] for c in ('red', 'blue')]

    def run_pipeline_test(self, asked, chats):
        for chat in chats:
            said, = asked(text=chat, return_full_text=False)
            assert said['generated_text'].__class__ is str and said['input_text'] == chat


class TestPeerPipeline(PipelineTesterMixin, unittest.TestCase):
    pipeline_model_mapping = {TASK: AlignGPTForConditionalGeneration}

    def setUp(self):
        super().setUp()
        root, ask = Path(tempfile.mkdtemp()), ImageTextToTextPipelineTests
        save(build(), processor(), root/'aligngpt'/MODEL)
        parts = dict(tokenizer_classes=['PreTrainedTokenizerFast'], processor_classes=['CLIPImageProcessorPil'])
        named = f'{ask.__module__}.{ask.__name__}' if isinstance(mapping[TASK]['test'], str) else ask
        module = f'{PACKAGE}.test_pipeline_mixin'
        for change in (patch(f'{module}.TRANSFORMERS_TINY_MODEL_PATH', str(root)),
                       patch(f'{module}.tiny_model_summary', {MODEL:parts}),
                       patch.dict(mapping, {TASK: dict(test=named)})):
            change.start()
            self.addCleanup(change.stop)
