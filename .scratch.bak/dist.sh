. /work/wt/train/.scratch/env.sh
rm -rf /tmp/tr; mkdir -p /tmp/tr
for st in finetune pretrain; do
nice -n 10 python tests/launched.py /tmp/tr/$st-one stage=$st batch_size=4 max_steps=50 > /tmp/tr/$st-one.log 2>&1
for sh in none zero2 zero3 fsdp zero3-offload; do
 nice -n 10 torchrun --nproc_per_node 2 tests/launched.py /tmp/tr/$st-$sh stage=$st batch_size=2 max_steps=50 sharding=$sh > /tmp/tr/$st-$sh.log 2>&1
 echo $st $sh $?
done; done
