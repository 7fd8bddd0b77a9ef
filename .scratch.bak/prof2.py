import sys; sys.argv=['x','finetune','0','none']
exec(open('.scratch/bench.py').read().split("opts={k:models")[0])
import time
m=AlignGPTForConditionalGeneration(AlignGPTConfig(vision_config=vision,text_config=text)).train()
freeze(m,FINETUNE.train)
from torch.profiler import profile, ProfilerActivity
m(**b).loss.backward(); m.zero_grad()
T={}
def timed(mod,name):
    st=[]
    mod.register_forward_pre_hook(lambda *a: st.append(time.process_time()))
    mod.register_forward_hook(lambda *a: T.__setitem__(name,T.get(name,0)+time.process_time()-st.pop()))
timed(m.vision_tower,'tower'); timed(m.projector,'proj'); timed(m.gate,'gate'); timed(m.language_model.model,'lm'); timed(m.language_model.lm_head,'head')
l=m.language_model.model.layers[2]; timed(l,'layer'); timed(l.self_attn,'attn'); timed(l.mlp,'mlp'); timed(l.input_layernorm,'norm')
timed(m.vision_tower.encoder.layers[3] if hasattr(m.vision_tower,'encoder') else m.vision_tower.vision_model.encoder.layers[3],'tlayer')
with profile(activities=[ProfilerActivity.CPU]) as p:
    c=time.process_time(); loss=m(**b).loss; f=time.process_time(); loss.backward(); e=time.process_time()
print('fwd',f-c,'bwd',e-f,{k:round(v,3) for k,v in T.items()})
print(p.key_averages().table(sort_by='self_cpu_time_total',row_limit=28,max_name_column_width=50))
