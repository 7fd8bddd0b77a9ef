"""Each thing that a user can get wrong with a model is one line that names the file, the row or the key."""
import copy, io, json, os, random, shutil, sys

import pytest, torch
from transformers import AutoModelForImageTextToText

from aligngpt.chat.session import open_session
from aligngpt.checkpoints.adapters import add_lora, load_adapter
from aligngpt.checkpoints.layouts import from_base, load, open_checkpoint, save, tower_config
from aligngpt.checkpoints.convert import convert
from aligngpt.core.errors import AlignGPTError
from aligngpt.data.audit import _open_processor
from aligngpt.levels.alignment import DualEncoder
from aligngpt.text.tokenizer import load_tokenizer
from small import CHATS, batch, build, picture, processor

CPU = dict(dtype='float32', device='cpu')
STRANGERS = shutil.ignore_patterns('sums.json') # a folder of somebody who kept no sums


def refused(*names, cause=AlignGPTError):
    "The block must raise an error of one line that names all of `names`."
    class Check:
        def __enter__(self): return self
        def __exit__(self, kind, e, _):
            assert kind is not None, f'no error, expected {names}'
            assert isinstance(e, cause), f'{kind.__name__}: {e}'
            assert '\n' not in e.message and len(e.message) < 400, e.message
            for n in names: assert str(n) in e.message, f'{n!r} not in {e.message!r}'
            return True
    return Check()

@pytest.fixture(scope='module')
def model(): return build()

@pytest.fixture(scope='module')
def folders(model, tmp_path_factory):
    "The same model in our layout and in the official one, in shards."
    tmp = tmp_path_factory.mktemp('models')
    save(model, processor(), tmp/'ours')
    convert(tmp/'ours', tmp/'official', shard='60KB', pickled=True, quiet=True)
    return tmp/'ours', tmp/'official'

@pytest.fixture
def broken(folders, tmp_path):
    "Copies that a test may damage."
    for f in folders: shutil.copytree(f, tmp_path/f.name, ignore=STRANGERS)
    return tmp_path/'ours', tmp_path/'official'


# Pictures and placeholders.

def test_pictures_and_placeholders(model):
    p, one = processor(), picture('red')
    with refused('row 0', '2 <image>', '1 pictures'): p(text='USER: <image> <image>', images=[one])
    with refused('row 1', '1 <image>', '2 pictures'):
        p(text=['USER: <image>', 'USER: <image>'], images=[[one], [one, one]])
    with refused('1 <image>', '[1, 0]', '2 pictures'): p(text=['USER: <image>', 'USER: none'], images=[one, one])
    with refused('sample 7', '1 pictures', '2 given'):
        p.encode([*CHATS[0], dict(role='assistant', content='red')], images=[one, one], where='sample 7')
    with refused('data.json, record 3', '1 <image>', '2 pictures'):
        p.encode({'image':['a.png', 'b.png'], 'conversations':[{'from':'human', 'value':'<image>\nwhat?'},
            {'from':'gpt', 'value':'red'}]}, where='data.json, record 3')
    b = batch(CHATS)
    with refused('4 images', '[1, 0, 2, 2]'): model(**{**b, 'pixel_values':b['pixel_values'][:4]})

def test_a_row_with_half_a_picture(model):
    b = batch(CHATS[:2])
    b['input_ids'][1, -1] = processor().image_token_id
    with refused('row 1 has 1'): model(**b)
    with refused('row 1 has 1'): model.generate(**b, max_new_tokens=1)

def test_picture_size(model):
    with refused('pixel_values', '[n_images, 3, 32, 32]', '(1, 3, 64, 64)'):
        model(**{**batch(CHATS[:1]), 'pixel_values':torch.zeros(1, 3, 64, 64)})

def test_processor_of_another_tower(broken):
    ours, _ = broken
    f = ours/'processor_config.json'
    about = json.loads(f.read_text())
    about['image_processor'].update(size=dict(shortest_edge=64), crop_size=dict(height=64, width=64))
    f.write_text(json.dumps(about))
    with refused(ours, '64', '32'): load(ours, **CPU)

def test_picture_files(tmp_path):
    p = processor()
    picture('red').save(tmp_path/'good.png')
    (tmp_path/'cut.png').write_bytes((tmp_path/'good.png').read_bytes()[:60])
    (tmp_path/'page.png').write_text('<html>')
    for name in ('cut.png', 'page.png', 'none.png'):
        with refused(tmp_path/name): p(text='USER: <image>', images=[tmp_path/name])


# Ids and levels.

@pytest.mark.parametrize('bad', [100_000, -200])
def test_token_id(model, bad):
    b = batch(CHATS)
    b['input_ids'][2, -3] = bad
    at = b['input_ids'].shape[1] - 3
    for f in (lambda: model(**b), lambda: model.generate(**b, max_new_tokens=1)):
        with refused('input_ids', 'row 2', f'position {at}', bad, 'Valid range: 0-'): f()

def test_levels(model):
    b = batch(CHATS)
    with refused('level 8', '0-7'): model.generate(**b, alignment=8, max_new_tokens=1)
    with refused('level -1', '0-7'): model(**b, alignment=[0, 1, -1, 2])
    with refused('alignment', '(3,)'): model(**b, alignment=torch.tensor([.1, .2, .7]))


# Files.

def test_cut_shard(broken):
    for folder in broken:
        f = sorted([*folder.glob('*.bin'), *folder.glob('*.safetensors')])[-1]
        f.write_bytes(f.read_bytes()[:-300])
        with refused(f, 'damaged or cut short'): load(folder, **CPU)

def test_missing_shard(broken):
    f = sorted(broken[1].glob('*.bin'))[2]
    f.unlink()
    with refused(broken[1], f.name, 'missing'): load(broken[1], **CPU)

class Command:
    def __init__(self, file): self.file = file
    def __reduce__(self): return os.mkdir, (str(self.file),)

def test_pickle_with_code(broken, tmp_path):
    f = sorted(broken[1].glob('*.bin'))[1]
    torch.save({**torch.load(f, weights_only=True), 'model.norm.weight':Command(tmp_path/'was_run')}, f)
    for use in (lambda: load(broken[1], **CPU), lambda: convert(broken[1], tmp_path/'new', quiet=True)):
        with refused(f, 'holds code', 'mkdir'): use()
    assert not (tmp_path/'was_run').exists() and not (tmp_path/'new').exists()

def change(folder, **keys):
    f = folder/'config.json'
    about = {**json.loads(f.read_text()), **keys}
    f.write_text(json.dumps({k:v for k,v in about.items() if v is not None}))

@pytest.mark.parametrize('key', ['model_type', 'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
                                 'num_attention_heads', 'mm_vision_tower'])
def test_config_without_key(broken, key):
    change(broken[1], **{key:None})
    with refused(broken[1]/'config.json', key): load(broken[1], **CPU)

@pytest.mark.parametrize('key', ['model_type', 'vision_config', 'align_token_id', 'image_token_id'])
def test_our_config_without_key(broken, key):
    change(broken[0], **{key:None})
    with refused(broken[0], *([key] if key != 'vision_config' else [])): load(broken[0], **CPU)

def test_config_is_no_json(broken):
    for folder in broken:
        (folder/'config.json').write_text('{"model_type": "alig')
        with refused(folder/'config.json', 'not valid JSON'): load(folder, **CPU)

def test_config_of_another_model(broken):
    change(broken[1], hidden_size=64)
    with refused(broken[1], 'has shape', 'asks for'): load(broken[1], **CPU)
    change(broken[0], gate_text='all')
    with refused('gate_text', 'all'): load(broken[0], **CPU)

def test_tower_that_is_not_there(broken):
    change(broken[1], mm_vision_tower='../nowhere')
    with refused(broken[1], '../nowhere'): load(broken[1], **CPU)

def test_official_folder_through_auto_classes(broken):
    with refused(broken[1], 'official release'): AutoModelForImageTextToText.from_pretrained(broken[1])

def test_folder_that_is_nothing(tmp_path):
    with refused(tmp_path/'none'): load(tmp_path/'none', **CPU)
    (tmp_path/'empty').mkdir()
    with refused(tmp_path/'empty', 'nothing'): open_checkpoint(tmp_path/'empty')


# Code of others.

@pytest.fixture
def strange(folders, tmp_path, monkeypatch):
    "A folder that asks to run code, wherever a folder can, and somebody who types `y` to every question."
    folder, ran = tmp_path/'strange', tmp_path/'ran'
    shutil.copytree(folders[0], folder, ignore=STRANGERS)
    (folder/'code.py').write_text(f'open({str(ran)!r}, "w")\nclass C:\n    def __init__(self, *a, **k): pass')
    def edit(name, **changes):
        file = folder/name
        said = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**said, **changes}))
        return folder
    monkeypatch.setattr('sys.stdin', io.StringIO('y\n'*99))
    yield edit
    assert not ran.exists() and sys.stdin.tell() == 0, 'code was run, or a question asked'

MODEL = dict(model_type='strange', auto_map={k: 'code.C' for k in ('AutoConfig', 'AutoModel', 'AutoModelForCausalLM',
                                                                   'AutoTokenizer', 'AutoImageProcessor')})
TOKENIZER = dict(tokenizer_class='C', auto_map=dict(AutoTokenizer=['code.C', 'code.C']))
KERNELS = [dict(attn_implementation='evil/attention'), dict(_attn_implementation='evil/attention:f'),
           dict(text_config=dict(model_type='llama', _attn_implementation='evil/attention@main')),
           dict(vision_config=dict(model_type='clip_vision_model', attn_implementation={'': 'evil/attention'}))]
ROUTES = dict(load=lambda f: load(f, **CPU), open=open_checkpoint, convert=lambda f: convert(f, f/'new', quiet=True),
              language=lambda f: from_base(f, f, **CPU), tower=tower_config, tokenizer=load_tokenizer,
              scorer=DualEncoder.from_pretrained, shown=lambda f: view(f), audit=_open_processor,
              serve=lambda f: open_session(f))

def view(folder):
    from aligngpt.cli.data import show_command
    (folder/'data.json').write_text('[{"conversations": [{"from": "human", "value": "Hm?"}, {"from": "gpt", "value": "Ah."}]}]')
    show_command(data=folder/'data.json', processor=folder)

@pytest.mark.parametrize('route', ['language', 'tower', 'tokenizer', 'scorer'])
def test_code_of_a_model(strange, route):
    strange('tokenizer_config.json', **TOKENIZER)
    with refused('strange', 'was not run'): ROUTES[route](strange('config.json', **MODEL))

@pytest.mark.parametrize('route', ['load', 'open', 'convert', 'shown', 'audit', 'serve'])
def test_code_of_a_tokenizer(strange, route):
    (strange('tokenizer_config.json', **TOKENIZER)/'tokenizer.json').unlink()
    with refused('strange', 'was not run'): ROUTES[route](strange('config.json', model_type='aligngpt'))

@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('route', ['load', 'open', 'convert', 'tower', 'scorer'])
def test_kernels(strange, route, kernel):
    with refused('strange', 'kernel', 'evil/attention', 'was not run'):
        ROUTES[route](strange('config.json', **kernel))

@pytest.mark.parametrize('name', ['../ours/model.safetensors', '/etc/passwd', '..'])
@pytest.mark.parametrize('route', ['load', 'open', 'convert', 'tower', 'scorer'])
def test_shards_elsewhere(strange, route, name):
    "An index of shards leads nowhere else."
    folder = strange('model.safetensors.index.json', metadata={}, weight_map={'levels.weight': name})
    with refused('model.safetensors.index.json', name): ROUTES[route](folder)

def test_modules_of_an_adapter(model, tmp_path):
    pytest.importorskip('peft')
    save(add_lora(copy.deepcopy(model), rank=2, alpha=4), processor(), tmp_path/'a')
    file = tmp_path/'a'/'adapter_config.json'
    (tmp_path/'a'/'sums.json').unlink()
    file.write_text(json.dumps({**json.loads(file.read_text()), 'megatron_config': {'x': 1},
                                'megatron_core': 'antigravity'}))
    with refused('adapter', 'megatron'): load_adapter(copy.deepcopy(model), tmp_path/'a')


@pytest.mark.parametrize('to', ['hf', 'official'])
def test_converted_and_changed(tmp_path, to):
    "One bit of a converted model, in the middle of its weights or in a header: named, and not loaded."
    from aligngpt.model.toy import toy
    for part in toy(): part.save_pretrained(tmp_path/'toy')
    made = convert(tmp_path/'toy', tmp_path/'made', to, quiet=True, tower=None if to == 'hf' else str(tmp_path/'toy'))
    draw = random.Random(0)
    for file in sorted(p for p in made.iterdir() if p.suffix in ('.safetensors', '.bin')):
        whole = file.read_bytes()
        for at in (draw.randrange(8, 200), draw.randrange(len(whole)//2, len(whole))):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at+1:])
            with pytest.raises(AlignGPTError) as e: load(made, device='cpu')
            assert f'{made}' in str(e.value) and 'damaged' in str(e.value), e.value
        file.write_bytes(whole)


@pytest.mark.parametrize('layout', [0, 1])
def test_flipped_byte(folders, tmp_path, layout):
    "Each file that was written, with one bit that a disk changed; what a person changed is accepted."
    there = tmp_path/'there'
    shutil.copytree(folders[layout], there)
    listed = json.loads((there/'sums.json').read_text())
    names = [f.relative_to(there).as_posix() for f in there.rglob('*') if f.is_file()]
    assert {'config.json', 'tokenizer_config.json'} <= listed.keys()
    assert set(names) - listed.keys() <= {'README.md', 'sums.json'}
    for name in [n for n in names if n != 'README.md']:
        raw = (there/name).read_bytes()
        (there/name).write_bytes(raw[:len(raw)//2] + bytes([raw[len(raw)//2] ^ 1]) + raw[len(raw)//2+1:])
        with refused(name): open_checkpoint(there)
        (there/name).write_bytes(raw)
    config = json.loads((there/'config.json').read_text()) | dict(gate_text='full')
    (there/'config.json').write_text(json.dumps(config))
    with refused('config.json'): open_checkpoint(there)
    del listed['config.json'], listed['sum of the rest']
    (there/'sums.json').write_text(json.dumps(listed))
    assert open_checkpoint(there).config.gate_text == 'full'
