"""A model made from a seed, small but with everything: grouped-query attention, weights large enough for logits
that differ."""
from functools import lru_cache

import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig

from aligngpt.model.layers import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.toy import swatch, toy_processor


@lru_cache(None)
def processor(gate_text='prompt'): return toy_processor().with_settings(gate_text=gate_text)

def build(gate_text='prompt', **text):
    "The model; the same each time."
    p = processor(gate_text)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                              image_size=32, patch_size=8)
    text = LlamaConfig(**{**dict(vocab_size=p.align_token_id, hidden_size=48, intermediate_size=96,
                                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                 max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, initializer_range=.1),
                                 **text})
    config = AlignGPTConfig(vision_config=vision, text_config=text, gate_hidden_size=20, gate_text=gate_text,
                            align_token_id=p.align_token_id, image_token_id=p.image_token_id)
    torch.manual_seed(0)
    model = AlignGPTForConditionalGeneration(config)
    for q in [*model.projector.parameters(), model.levels.weight]: q.data.mul_(2)
    for q in model.gate.parameters(): q.data.add_(torch.randn_like(q)*.3) # α far from uniform
    return model.eval()

def picture(colour, size=(32, 32)):
    im = Image.new('RGB', size, 'white')
    im.paste(swatch(colour, 20), (5, 3))
    return im

def user(text, *pictures):
    return dict(role='user', content=[*(dict(type='image', image=p) for p in pictures), dict(type='text', text=text)])
def says(text): return dict(role='assistant', content=text)

CHATS = [ # one picture; text alone; two pictures at once; a second picture in a later turn
    [user('What colour is it?', picture('red'))],
    [user('Count to ten.')],
    [user('Is it warm or cool? And why?', picture('green', (50, 31)), picture('blue')), says('It is **green**.'),
     user('Describe it.')],
    [user('Describe it.', picture('yellow')), says('one, two'),
     user('Is it warm or cool?', picture('blue', (20, 60)))],
]

def batch(chats, side='left', prompt=True, p=None):
    "What the model takes, padded on a side."
    return (p or processor()).apply_chat_template(chats, add_generation_prompt=prompt, tokenize=True,
                                                  return_dict=True, return_tensors='pt', padding=True,
                                                  padding_side=side)
