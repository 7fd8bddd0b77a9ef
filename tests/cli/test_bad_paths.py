"""Every option of every command that names a file or a folder, each with what it must not be: a folder for a file, a
file for a folder, a pipe, a device, nothing, a name of nonsense. One sentence, and what was there stays. Whoever adds
an option is told here that it has to be tried."""
import inspect, os
from pathlib import Path

import pytest

import world
from world import command

pytestmark = pytest.mark.slow
OTHER = set('''bits recipe ablate seed rehearse question level temperature max_tokens device dtype host port name max_batch
queue max_seconds max_request_mb max_images max_image_mb max_megapixels max_text_kb max_connections remote_images page
grace drain engine n levels batch_size workers policy cap max_length row template to fresh preset weights quiet
gate_text lora quantize gpus gpu_memory gpu sharding samples tasks limit on_missing_image lenient show card judge judge_model
judge_key judge_jobs judge_retries judge_timeout judge_price rounds yes task as_is rule top least by similarity
from_column key kind edges
ask ask_column max_new_tokens step stream layout check any_code arms control dry_run example file needs_picture
noises only opened pairs plan power rating_as rating_least rating_of rating_scale ratings reduced report seeds set
unrated who worlds workload shape precision turns actors answer places measure'''.split()) # name no place


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    d = world.world(tmp_path_factory.mktemp('paths'), pictures=4)
    from aligngpt.data.archives import HEAD
    (d/'film.mp4').write_bytes(HEAD + bytes(64))
    (d/'settings.yaml').write_text('epochs: 1\n')
    (d/'answers.jsonl').write_text('{"question_id": 0, "text": "red"}\n')
    command('levels', d/'pairs.json', '--images', d/'images', '--clip', d/'clip', '--levels', 2, '--workers', 0,
            '--out', d/'levels.json')
    odd = d/'odd'
    (odd/'folder').mkdir(parents=True)
    (odd/'folder'/'kept').write_text('kept')
    (odd/'file').write_bytes(b'neither this nor that')
    os.mkfifo(odd/'pipe')
    (odd/'circle').symlink_to(odd/'circle')
    return d


def good(d, out):
    "For each command, values with which it would begin."
    images, stage = dict(images=d/'images'), dict(data=d/'pairs.json', images=d/'images', model=d/'toy', out=out/'run')
    more = dict(llm=d/'toy', tower=d/'clip', valid=d/'pairs.json', features=out/'f', config=d/'settings.yaml',
                format='llava', ids=d/'some.npy', without=d/'left.jsonl', levels_from=d/'levels')
    return dict(
        quickstart=dict(out=out/'quick', drawings=d/'images'), shapes=dict(step='examples', out=out/'shapes'),
        chat=dict(run=d/'toy', image=d/'images'/'0.png', question='Hm?'),
        serve=dict(run=d/'toy', api_key_file=d/'pairs.json'), zoo={}, plan={},
        levels=dict(data=d/'pairs.json', clip=d/'clip', out=out/'l.json', format='llava', method='quantile',
                    scores=d/'pairs.json', **images),
        select=dict(data=d/'pairs.json', out=out/'some.json', ids=d/'some.npy', format='llava', without=d/'left.jsonl',
                    levels_from=d/'levels'),
        audit=dict(data=d/'pairs.json', out=out/'audit', processor=d/'toy', format='llava', ids=d/'some.npy',
                   without=d/'left.jsonl', levels_from=d/'levels', against=d/'images', model=d/'toy', clip=d/'clip', **images),
        show=dict(data=d/'pairs.json', processor=d/'toy', format='llava', **images),
        unpack=dict(files=d/'film.mp4', out=out/'u', md5=d/'md5.json', extract_to=out/'x'),
        export=dict(run=d/'toy', out=out/'export', to='llava-hf', questions=d/'asked.jsonl', data=d),
        convert=dict(src=d/'toy', dst=out/'c', llm=d/'toy', tower=d/'clip'), pretrain={**stage, **more},
        finetune={**stage, **more}, eval=dict(run=d/'toy', data=d, out=out/'e', compare=d/'toy',
                                                without=d/'left.json', captions=d/'said.csv'),
        score=dict(task=d/'asked.jsonl', data=d, predictions=d/'answers.jsonl', json=out/'s.json', upload=out/'up',
                   replies=d/'answers.jsonl', without=d/'left.json', agreement=d/'answers.jsonl'),
        answer=dict(data=d/'pairs.json', model=d/'toy', ask='Hm?', out=out/'said.csv', images=d/'images'),
        caption=dict(data=d/'pairs.json', model=d/'toy', out=out/'said.csv', images=d/'images', limit=1,
                     max_new_tokens=1),
        label=dict(data=d/'levels.json', out=out/'labels', **images), notebook=dict(run=d/'toy', out=out/'chat.ipynb'),
        ablate=dict(out=out/'ablation'), run=dict(), bench=dict(json=out/'b.json'),
        doctor=dict(target=d/'pairs.json', data=d/'pairs.json', images=d/'images', processor=d/'toy', out=out/'doctor'),
        explain=dict(run=d/'toy', image=d/'images'/'0.png', ask='Hm?', out=out/'why.json'),
        recaption=dict(data=d/'levels.json', model=d/'toy', clip=d/'clip', out=out/'better.json',
                       scores=d/'levels.parquet', **images))

_LONG = 'serve', 'quickstart', 'label', 'notebook', 'ablate', 'run', 'bench' # those that serve, open or train: tried elsewhere
ARGUMENTS = dict(run=0, data=0, files=0, src=0, dst=1, task=0)
FOLDERS = 'out', 'features', 'extract_to', 'images', 'drawings' # which may be there, or are made


def commands():
    "name -> its parameters, as the command line has them."
    import typer.main
    from aligngpt.cli.experiment import commands_in
    from aligngpt.cli.main import app
    return {name:c.params for name,c in commands_in(typer.main.get_command(app)).items()}


def line(name, params, values):
    "The command line."
    kinds = {p.name:p for p in params}
    said = [str(v) for k,v in values.items() if kinds[k].param_type_name == 'argument']
    options = [w for k,v in values.items() if kinds[k].param_type_name == 'option' for w in (kinds[k].opts[0], str(v))]
    return [name, *said, *options]


def test_each_option_is_known(place, tmp_path):
    "An option that is in neither list is new: does it name a place?"
    stage = set(inspect.signature(__import__('aligngpt.training.settings').training.settings.StageConfig).parameters)
    known = good(place, tmp_path)
    assert set(commands()) == set(known)
    new = {(c, p.name) for c,params in commands().items() for p in params} - {(c, k) for c in known for k in known[c]}
    assert {(c, k) for c,k in new if k not in OTHER | stage and c != 'shapes'} == set() # whose options a file fills


def cases(place, out):
    "(command line, the odd place) of each option with each odd thing."
    for name, params in commands().items():
        values = good(place, out)[name]
        needed = {p.name for p in params if p.required} | {'question', 'ask', 'limit', 'max_new_tokens'} & set(values)
        if name in ('pretrain', 'finetune'): needed |= {'data', 'images', 'out', 'model'}
        for k in set(values) - {'format', 'method', 'task', *OTHER} if name not in _LONG else {}:
            for what in ('folder', 'file', 'pipe', 'circle', 'nothing', 'x'*300, '\udcff\x1b[31m\n'):
                odd = Path('/dev/zero') if what == 'nothing' and k in ('data', 'predictions') else place/'odd'/what
                yield line(name, params, {x:values[x] for x in values if x in needed} | {k:odd}), k, what


def test_each_odd_place(place, tmp_path):
    "Ends by itself, with a result or one sentence; never an accident, never a lost file."
    accidents, before = [], sorted(p.name for p in (place/'odd').iterdir())
    for args, k, what in cases(place, tmp_path):
        code, said = command(*args)
        if 'should not happen' in said or 'Traceback' in said or (code and '\x1b[31m' in said):
            accidents.append((args[0], k, what[:8], said[-300:]))
    assert accidents == [], '\n'.join(map(repr, accidents))
    assert (place/'odd'/'folder'/'kept').read_text() == 'kept' and set(before) <= set(os.listdir(place/'odd'))
