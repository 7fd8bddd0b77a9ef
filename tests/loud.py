"Models of ten families with loud random weights, in which every word and every pixel matters."
import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast, SiglipImageProcessorPil, SiglipVisionConfig, set_seed

from aligngpt.model.layers import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.processor import AlignGPTProcessor
from aligngpt.model.toy import toy_model, toy_processor
from aligngpt.text.conversation import TEMPLATES
from aligngpt.text.tokenizer import sentencepiece_backend

SIZE = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
SIGLIP = SiglipVisionConfig(**SIZE, image_size=32, patch_size=8)


def tokenizer(kind):
    "One that llama.cpp has, too: GPT-2's rule, or pieces of sentencepiece."
    if kind == 'bytes':
        tok = toy_processor().tokenizer
        tok.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return tok
    import sentencepiece, tempfile
    folder = tempfile.mkdtemp()
    lines = [t.system for t in TEMPLATES.values() if t.system]*20 + ['USER: what is this? ASSISTANT: a red circle']*20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=f'{folder}/m', vocab_size=420,
        model_type='bpe', byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2)
    return PreTrainedTokenizerFast(tokenizer_object=sentencepiece_backend(f'{folder}/m.model', kind == 'legacy'),
                                   bos_token='<s>', eos_token='</s>', unk_token='<unk>')


def made(family='llama', tokens='bytes', vision=SIGLIP, seed=0, **text):
    "A model with loud random weights, and its processor."
    tok, side = tokenizer(tokens), dict(height=32, width=32)
    processor = AlignGPTProcessor(SiglipImageProcessorPil(size=side), tok, num_image_tokens=16)
    config = AutoConfig.for_model(family, **SIZE, vocab_size=processor.align_token_id, max_position_embeddings=1024,
                                  pad_token_id=0, bos_token_id=1, eos_token_id=2, **text)
    set_seed(seed)
    model = AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision, text_config=config,
        align_token_id=processor.align_token_id, image_token_id=processor.image_token_id)).eval()
    with torch.no_grad():
        for n,p in model.named_parameters():
            if p.dim() > 1 and 'gate' not in n: p.normal_(std=.15)
            elif 'language_model' in n and n.endswith('bias'): p.normal_(std=.1)
    return model, processor


def wide():
    "The toy with heads of a size that vLLM has kernels for, and alignment vectors by which every word matters."
    processor = toy_processor()
    c = toy_model(processor).config
    text = AutoConfig.for_model('llama', vocab_size=processor.align_token_id, hidden_size=128, intermediate_size=256,
                                num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                                max_position_embeddings=512, bos_token_id=1, eos_token_id=2, initializer_range=.2)
    set_seed(1)
    model = AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=c.vision_config, text_config=text,
        align_token_id=c.align_token_id, image_token_id=c.image_token_id)).eval()
    with torch.no_grad(): model.levels.weight.mul_(4)
    return model, processor
