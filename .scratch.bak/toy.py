import torch, sys, json, os
from pathlib import Path
from transformers import CLIPVisionConfig, LlamaConfig, set_seed
from aligngpt.layers import AlignGPTConfig
from aligngpt.model import AlignGPTForConditionalGeneration
from aligngpt.batches import Collator
from aligngpt.training import *
torch.set_num_threads(1)
def tiny_model(use_gate=True, seed=0):
    set_seed(seed)
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8)
    text = LlamaConfig(vocab_size=60, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    return AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision, text_config=text, align_token_id=60, image_token_id=61, use_gate=use_gate))
class Mixed(torch.utils.data.Dataset):
    fingerprint='mixed'
    def __init__(self, n=64, levels=False): self.n, self.levels = n, levels; self.has_image=[i%4<2 or i%3==0 for i in range(n)]; self.lengths=[10]*n
    def __len__(self): return self.n
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        k = (2 if i%7==0 else 1)*self.has_image[i]
        ids = [1] + [60]*(k>0) + [61]*4*k + torch.randint(3,60,(5,),generator=g).tolist()
        ans = torch.randint(3,60,(int(torch.randint(1,6,(1,),generator=g)),),generator=g).tolist()+[2]
        s = dict(input_ids=torch.tensor(ids+ans), labels=torch.tensor([-100]*len(ids)+ans))
        if k: s['pixel_values'] = torch.randn(k,3,16,16,generator=g)
        if k and self.levels: s['alignment'] = i%8
        return s
