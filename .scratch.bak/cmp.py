import json
for st in ('finetune','pretrain'):
    a=json.load(open(f'/tmp/tr/{st}-one/result.json'))['losses']
    for sh in ('none','zero2','zero3','fsdp','zero3-offload'):
        b=json.load(open(f'/tmp/tr/{st}-{sh}/result.json'))
        print(st,sh,len(b['losses']),b['processes'],max(abs(x-y) for x,y in zip(a,b['losses'])), b['seconds'])
