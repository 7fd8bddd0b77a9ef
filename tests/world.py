"A small world for tests of whole commands, which run here or in a process to be killed; and folders byte by byte."
import contextlib, io, json
from pathlib import Path

import numpy as np
from PIL import Image

# What may differ between two runs, by name. Trackers write files of their own (tensorboard's names hold time, host and
# process), so these runs have none; an index beside data (NAME.index) is a cache that knows the time of its file.
TIMES = 'timing.jsonl', 'watch.json' # hold times, or what there was time for


def world(d, pictures=24):
    "Model, CLIP, pictures, pairs, conversations and questions in `d`; the same each time."
    from aligngpt.model.toy import toy
    from aligngpt.testing.fixtures import tiny_clip
    for part in toy(): part.save_pretrained(d/'toy')
    tiny_clip(d/'clip')
    (d/'images').mkdir()
    rng = np.random.default_rng(0)
    for i in range(pictures):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(d/'images'/f'{i}.png')
    def record(i, asks): return dict(id=str(i), image=f'{i}.png', similarity=i%8, conversations=[
        {'from':'human', 'value':asks}, {'from':'gpt', 'value':f'It is {"red green blue".split()[i%3]}.'}])
    for name, asks in (('pairs', '<image>'), ('talks', '<image>\nWhat colour is it?')):
        (d/f'{name}.json').write_text(json.dumps([record(i, asks) for i in range(pictures)]))
    bad = [record(i, '<image>') for i in range(4)] + [record(i, 'No <place>') for i in range(4)]
    bad[1]['image'], bad[2]['conversations'] = 'gone.png', []
    (d/'bad.json').write_text(json.dumps(bad))
    asked = [dict(question_id=i, image=f'images/{i}.png', text='What colour is it?', answer='red') for i in range(6)]
    (d/'asked.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in asked))
    return d

STAGE = '--device cpu --batch-size 4 --log-every 1 --quiet --learning-rate 1e-3 --trackers none'.split()

def pretrain(d, out, *more):
    return ['pretrain', '--data', d/'pairs.json', '--images', d/'images', '--model', d/'toy', '--out', out, *STAGE,
            *more]

def finetune(d, start, out, *more):
    return ['finetune', '--data', d/'talks.json', '--images', d/'images', '--model', start, '--out', out, *STAGE, *more]

def command(*args):
    "Run the command in this process: (exit code, what it wrote)."
    from aligngpt.cli.main import main
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try: main([str(a) for a in args])
        except SystemExit as e: return e.code, out.getvalue()
    return 0, out.getvalue()

def process(*args):
    "The target of a process: the command, silent."
    code, said = command(*args)
    if code: print(said, flush=True)
    raise SystemExit(code)

def files(folder, but=TIMES):
    "Relative name -> bytes of each file."
    return {p.relative_to(folder).as_posix():p.read_bytes() for p in sorted(Path(folder).rglob('*'))
            if p.is_file() and p.name not in but and p.parent.suffix != '.index'}

def differing(a, b):
    "Names of files that two folders do not both have, or with other bytes."
    a, b = files(a), files(b)
    return sorted({k for k in a.keys() | b.keys() if a.get(k) != b.get(k)})
