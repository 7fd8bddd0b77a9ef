"""Large checkpoints on small machines: memory of one tensor, and nothing half-made after a kill.

The source has the shapes of a 13B model (fewer layers), in shards of torch pickles, as the release has them.
"""
import json, os, shutil, signal, subprocess, sys
from pathlib import Path

import pytest, torch
from transformers import CLIPVisionConfig

from aligngpt.checkpoints.layouts import layout, official_name, save
from aligngpt.checkpoints.convert import convert
from aligngpt.model.layers import AlignGPTConfig
from aligngpt.model.modeling import AlignGPTForConditionalGeneration
from aligngpt.checkpoints.weights import find_weights, map_tensors
from aligngpt.checkpoints.zoo import LLAMA_13B
from small import build, processor

ROOT = Path(__file__).resolve().parents[2]


def child(code, *args, **kwargs):
    "Run Python code in a process of its own."
    env = {**os.environ, 'PYTHONPATH':str(ROOT), 'HF_HUB_OFFLINE':'1', 'OMP_NUM_THREADS':'1'}
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env=env,
                          **kwargs)

def tensors(folder): return {k:t for f in find_weights(folder) for k,t in map_tensors(f).items()}

def same(a, b):
    assert a.keys() == b.keys()
    for k in a: assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k


DIES = """
import os, signal, sys
import aligngpt.checkpoints.convert as c
whole, seen = c.write_safetensors, []
def write(file, *args):
    if len(seen) == 2: # in the middle of the third file
        with c.atomic_path(file) as p: p.write_bytes(b'x'*1000); os.kill(os.getpid(), signal.SIGKILL)
    whole(file, *args); seen.append(file.name)
c.write_safetensors = write
c.convert(sys.argv[1], sys.argv[2], shard='60KB', quiet=True)
"""

def test_kill_in_the_middle(tmp_path):
    "kill -9 leaves no folder of that name; the same command goes on and makes exactly what it would have made."
    save(build(), processor(), tmp_path/'ours')
    official = convert(tmp_path/'ours', tmp_path/'official', pickled=True, quiet=True)
    whole = convert(official, tmp_path/'whole', shard='60KB', quiet=True)
    dead = child(DIES, official, tmp_path/'new')
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert not (tmp_path/'new').exists()
    (part,) = tmp_path.glob('.new.*')
    done = {f.name:f.stat().st_mtime_ns for f in part.glob('model-*.safetensors')}
    assert len(done) == 2 and list(part.glob('.*.tmp'))
    new = convert(official, tmp_path/'new', shard='60KB', quiet=True)
    assert {n:(new/n).stat().st_mtime_ns for n in done} == done
    assert sorted(f.name for f in new.rglob('*')) == sorted(f.name for f in whole.rglob('*'))
    same(tensors(new), tensors(tmp_path/'ours'))
    assert not list(tmp_path.glob('.new.*'))


def big_release(folder, layers, shard=300<<20):
    "An official float16 checkpoint with the tensors of a 13B model, and how many bytes it has."
    p = processor()
    save(build(), p, folder.parent/'small')
    convert(folder.parent/'small', folder, to='official', quiet=True)
    text = {**LLAMA_13B, 'num_hidden_layers':layers}
    c = AlignGPTConfig(vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                                                      num_attention_heads=2, image_size=32, patch_size=8),
                                                      text_config=text, gate_hidden_size=20)
    with torch.device('meta'):
        shapes = {official_name(n):t.shape for n,t in AlignGPTForConditionalGeneration(c).state_dict().items()}
    about = {k:v for k,v in json.loads((folder/'config.json').read_text()).items() if k != 'head_dim'}
    (folder/'config.json').write_text(json.dumps({**about, **{k:v for k,v in text.items() if k in about},
                                                  'model_type':'aligngpt', 'mm_vision_tower':'vision_tower'}))
    for f in folder.glob('model*.safetensors*'): f.unlink()
    files, room, total = [{}], shard, 0
    for i,(n, s) in enumerate(shapes.items()):
        if s.numel()*2 > room and files[-1]: files.append({}); room = shard
        files[-1][n] = i
        room -= s.numel()*2; total += s.numel()*2
    names = [f'pytorch_model-{i+1:05}-of-{len(files):05}.bin' for i in range(len(files))]
    for name,keys in zip(names, files):
        torch.save({n:torch.full(shapes[n], i/1024, dtype=torch.float16) for n,i in keys.items()}, folder/name)
    (folder/'pytorch_model.bin.index.json').write_text(json.dumps(dict(metadata=dict(total_size=total),
        weight_map={n:f for f,keys in zip(names, files) for n in keys})))
    return total

CAPPED = """
import resource, sys
from aligngpt.checkpoints.convert import convert
import aligngpt.model.modeling, transformers.models.llama.modeling_llama, transformers.models.clip.modeling_clip
def status(key): return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith(key))
cap = int(sys.argv[3])
# what a process may have of its own, mapped pickles included
resource.setrlimit(resource.RLIMIT_DATA, (status('VmData') + cap, -1))
base = status('VmRSS')
convert(sys.argv[1], sys.argv[2], sys.argv[4], shard='500MB', quiet=True)
print(base, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024)
"""

def capped(src, dst, cap, to):
    "Convert under a cap; (bytes resident before, most bytes resident)."
    out = child(CAPPED, src, dst, cap, to)
    assert out.returncode == 0, out.stderr[-2000:]
    return tuple(map(int, out.stdout.split()[-2:]))

@pytest.fixture
def roomy(tmp_path):
    "A folder that is gone afterwards."
    yield tmp_path
    shutil.rmtree(tmp_path)

@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_more_than_memory(roomy):
    """2 GB of weights through a process that may hold less, there and back.

    ALIGNGPT_CONVERT_LAYERS=40 makes it the whole 26 GB (and needs 78 GB of disk).

    The memory does not depend on the number of layers: it is the largest tensor and what `stream` hands out from one
    mapping."""
    src, own = roomy/'release', 1_000_000_000
    total = big_release(src, int(os.environ.get('ALIGNGPT_CONVERT_LAYERS', 2)))
    steps = [(src, roomy/'ours', 'hf'), (roomy/'ours', roomy/'back', 'official')]
    for a,b,to in steps:
        base, peak = capped(a, b, own, to)
        print(f'\n{total/1e9:.2f} GB in {len(find_weights(a))} shards to {to}: '
              f'at most {peak/1e9:.2f} GB resident, {base/1e9:.2f} GB of it before')
        assert layout(b) == to
        assert peak < base + own < total
    same(tensors(roomy/'back'), tensors(src))
