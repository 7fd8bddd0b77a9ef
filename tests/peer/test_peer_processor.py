"transformers' own tests of a processor, with a tokenizer of letters and pictures of 32 pixels."
import unittest

import pytest

from aligngpt.model.processor import AlignGPTProcessor
from aligngpt.testing.fixtures import letters, small_pictures
from peer.suites import leaving_out, suite

ProcessorTesterMixin, = suite('test_processing_common', 'ProcessorTesterMixin')

pytestmark = pytest.mark.peer

LEFT_OUT = { # name of a test -> the property of the method because of which it cannot hold
}
PADS = { # with image_aspect_ratio='pad'
}


@leaving_out(LEFT_OUT)
class TestPeerProcessor(ProcessorTesterMixin, unittest.TestCase):
    "Pictures go to the tower's image processor as they are."
    processor_class = AlignGPTProcessor
    settings = dict(num_image_tokens=16, image_aspect_ratio='square')

    @classmethod
    def _setup_image_processor(cls): return small_pictures()

    @classmethod
    def _setup_tokenizer(cls): return letters()

    @classmethod
    def prepare_processor_dict(cls): return cls.settings
