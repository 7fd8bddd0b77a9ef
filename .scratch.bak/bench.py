import sys, time, torch, json, resource
sys.path.insert(0,'.scratch')
torch.set_num_threads(1)
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, set_seed
from aligngpt.layers import AlignGPTConfig
from aligngpt.model import AlignGPTForConditionalGeneration
from aligngpt.stages import freeze, PRETRAIN, FINETUNE
stage=sys.argv[1]; reps=int(sys.argv[2]); which=sys.argv[3].split(',') if len(sys.argv)>3 else ['ours','llava']
B=8
vision=CLIPVisionConfig(hidden_size=192,intermediate_size=768,num_hidden_layers=12,num_attention_heads=3,image_size=336,patch_size=14)
text=LlamaConfig(hidden_size=384,num_hidden_layers=6,num_attention_heads=6,intermediate_size=1024,vocab_size=32000,pad_token_id=0)
set_seed(0)
def batch():
    g=torch.Generator().manual_seed(0); rows=[]
    for i in range(B):
        if stage=='pretrain': q,a=0,int(torch.randint(10,40,(1,),generator=g))
        else: q,a=int(torch.randint(40,120,(1,),generator=g)),int(torch.randint(30,150,(1,),generator=g))
        t=torch.randint(3,31000,(q+a,),generator=g)
        ids=torch.cat([torch.tensor([1,32000]),torch.full((576,),32001),t]); lab=ids.clone(); lab[:578+q]=-100
        rows.append((ids,lab))
    pad=lambda k,v: torch.nn.utils.rnn.pad_sequence([r[k] for r in rows],True,padding_value=v)
    m=torch.nn.utils.rnn.pad_sequence([torch.ones_like(r[0]) for r in rows],True,padding_value=0)
    return dict(input_ids=pad(0,0),labels=pad(1,-100),attention_mask=m,pixel_values=torch.randn(B,3,336,336))
b=batch(); print({k:tuple(v.shape) for k,v in b.items()}, (b['labels']!=-100).sum().item())
models={}
if 'ours' in which:
    m=AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision,text_config=text,use_gate=stage!='pretrain')).train()
    freeze(m,(PRETRAIN if stage=='pretrain' else FINETUNE).train)
    models['ours']=(m,{**b,**({'alignment':torch.arange(B)} if stage=='pretrain' else {})})
if 'nomask' in which:
    models['nomask']=(models['ours'][0],{k:v for k,v in models['ours'][1].items() if k!='attention_mask'})
if 'llava' in which:
    l=LlavaForConditionalGeneration(LlavaConfig(vision_config=vision,text_config=text,image_token_id=31999,image_token_index=31999,vision_feature_layer=-2)).train()
    l.requires_grad_(False); l.model.multi_modal_projector.requires_grad_(True)
    if stage!='pretrain': l.model.language_model.requires_grad_(True); l.lm_head.requires_grad_(True)
    lb={**b,'input_ids':b['input_ids'].masked_fill(b['input_ids']==32001,31999).masked_fill(b['input_ids']==32000,5)}
    models['llava']=(l,lb)
opts={k:models['ours'] and None or None for k in []}
opts={k:torch.optim.AdamW([p for p in m.parameters() if p.requires_grad],lr=1e-5,fused=True) for k,(m,_) in models.items()}
def step(k):
    m,x=models[k]; c=time.process_time(); w=time.time()
    loss=m(**x).loss; f=time.process_time(); loss.backward(); bk=time.process_time(); opts[k].step(); opts[k].zero_grad(); o=time.process_time()
    return f-c,bk-f,o-bk,o-c,time.time()-w
out={k:[] for k in models}
for r in range(reps+1):
    for k in models:
        s=step(k)
        if r: out[k].append(s)
        print(k,['%.2f'%x for x in s],flush=True)
best={k:min(v,key=lambda s:s[3]) for k,v in out.items()}
print(best)
for k in best: print(stage,k,'ratio cpu',best['llava'][3]/best[k][3]) if 'llava' in best else None
print('rss',resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e6)
