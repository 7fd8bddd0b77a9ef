"""Memory of a training step with a vocabulary of 128,256 and 2048 tokens: at most half of what transformers' Llava
takes."""
import json, os, subprocess, sys
from pathlib import Path

import pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM

from aligngpt.model.layers import supervised_loss

STEP = '''
import json, re, sys, torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, set_seed
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.model.layers import AlignGPTConfig
from aligngpt.training.freezing import freeze
from aligngpt.training.settings import FINETUNE, PRETRAIN
ours, stage = sys.argv[1] == 'ours', dict(pretrain=PRETRAIN, finetune=FINETUNE)[sys.argv[2]]
torch.set_num_threads(1); set_seed(0)
V, L = 128256, 2048
vision = CLIPVisionConfig(hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3,
                          image_size=336, patch_size=14)
text = LlamaConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=688, vocab_size=V,
                   tie_word_embeddings=True)
ids = torch.randint(3, 1000, (1, L)); ids[:, 0] = 1; ids[:, 1] = V; ids[:, 2:578] = V + 1
labels = ids.clone(); labels[:, :L-200] = -100
if ours:
    model = AlignGPTForConditionalGeneration(AlignGPTConfig(
        vision_config=vision, text_config=text, align_token_id=V, image_token_id=V+1, use_gate='gate' in stage.train))
    freeze(model, stage.train)
else:
    ids = ids.masked_fill(ids == V+1, V-1).masked_fill(ids == V, 5)
    model = LlavaForConditionalGeneration(LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=V-1, image_token_index=V-1, vision_feature_layer=-2,
        tie_word_embeddings=True))
    model.requires_grad_(False); model.model.multi_modal_projector.requires_grad_(True)
    if 'language_model' in stage.train:
        for part in (model.model.language_model, model.lm_head): part.requires_grad_(True)
model.train()
batch = dict(input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids),
             pixel_values=torch.randn(1, 3, 336, 336))
if ours and stage.use_levels: batch['alignment'] = 3
opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
for _ in range(2):
    loss = model(**batch).loss
    loss.backward(); opt.step(); opt.zero_grad()
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(json.dumps(dict(loss=loss.item(), peak=int(peak[1])*1024)))
'''

def peak(which, stage):
    "Bytes that a process of its own has at most, and the loss of its second step."
    env = {**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2]), 'MALLOC_MMAP_THRESHOLD_': '65536'}
    done = subprocess.run([sys.executable, '-c', STEP, which, stage], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])['peak']

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='the peak is read from /proc')
@pytest.mark.parametrize('stage', ['pretrain', 'finetune'])
def test_half(stage):
    ours, llava = peak('ours', stage), peak('llava', stage)
    print(f'{stage}: AlignGPT {ours/1e9:.2f} GB, Llava {llava/1e9:.2f} GB, {ours/llava:.2f}')
    assert ours <= llava/2

def test_slices():
    "The output layer never sees more positions at a time than allowed, and none without a label."
    lm = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                      vocab_size=50))
    seen, labels = [], torch.full((1, 40), -100)
    labels[:, 15:] = 7
    lm.lm_head.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    with torch.no_grad(): supervised_loss(lm, torch.randn(1, 40, 8), labels, max_logits=500)
    assert max(seen) <= 10 and sum(seen) == 25
