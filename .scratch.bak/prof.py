import sys, time; sys.path.insert(0,'.scratch')
t0=time.time()
from toy import *
from aligngpt.stages import FINETUNE
import tempfile, cProfile, pstats, torch
if len(sys.argv)>1: torch.set_num_threads(int(sys.argv[1]))
print('import', time.time()-t0, time.process_time())
st=override(FINETUNE, batch_size=16, epochs=25, learning_rate=5e-3, precision='fp32', log_every=1, save_every=20)
p=cProfile.Profile(); t=time.time(); c=time.process_time()
p.enable(); run_stage(tiny_model(), Mixed(), Collator(0), st, tempfile.mkdtemp(), device='cpu', quiet=True); p.disable()
print(time.time()-t, time.process_time()-c)
pstats.Stats(p).sort_stats('cumtime').print_stats(45)
