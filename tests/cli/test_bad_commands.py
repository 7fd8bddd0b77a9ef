"Bad input through the commands: one clear line that names the file, row or key, the right exit code, and nothing lost."
import json, os, subprocess

import pytest


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with a model, a dual encoder and a few pictures."
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel
    from aligngpt.quickstart.scratch import clip_tokenizer, train_tokenizer
    from aligngpt.model.toy import swatch, toy
    d = tmp_path_factory.mktemp('place')
    for part in toy(): part.save_pretrained(d/'run')
    tok = clip_tokenizer(train_tokenizer(['a red picture', 'a blue picture']*20))
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    text = dict(small, vocab_size=len(tok), max_position_embeddings=32, bos_token_id=tok.bos_token_id,
                eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    CLIPModel(CLIPConfig(text_config=text, vision_config=dict(small, image_size=32, patch_size=8),
                         projection_dim=16)).save_pretrained(d/'clip')
    CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)).save_pretrained(d/'clip')
    tok.save_pretrained(d/'clip')
    (d/'images').mkdir()
    for c in ('red', 'blue'): swatch(c).save(d/'images'/f'{c}.png')
    whole = (d/'images'/'red.png').read_bytes()
    (d/'images'/'cut.png').write_bytes(whole[:len(whole)//2])
    return d


def command(capsys, *args):
    "(exit code, standard error) of a command line."
    from aligngpt.cli.main import main
    with pytest.raises(SystemExit) as stop: main([str(a) for a in args])
    return stop.value.code or 0, capsys.readouterr().err

def talk(say): return [{'from':'human', 'value':'<image>\nWhat is this?'}, {'from':'gpt', 'value':say}]
GOOD = [dict(id=f'{i}', image=f'{c}.png', conversations=talk(f'a {c} picture'))
        for i, c in enumerate(['red', 'blue']*4)]

def levels(capsys, place, tmp_path, records):
    (tmp_path/'pairs.json').write_text(json.dumps(records))
    return command(capsys, 'levels', tmp_path/'pairs.json', '--images', place/'images', '--clip', place/'clip',
                   '--out', tmp_path/'levels.json', '--device', 'cpu')


@pytest.mark.parametrize('record,says', [
    (dict(id='x', image='gone.png', conversations=talk('a red picture')),
     ('pairs.json', 'row 8', 'gone.png', 'no such image')),
    (dict(id='x', image='cut.png', conversations=talk('a red picture')),
     ('pairs.json', 'row 8', 'cut.png', 'damaged')),
    (dict(id='x', image='red.png'), ('pairs.json', 'row 8', 'known format')),
])
def test_records(capsys, place, tmp_path, record, says):
    "A missing picture, a truncated one, a record without conversations: named with file and row; earlier output stays."
    code, err = levels(capsys, place, tmp_path, GOOD)
    assert code == 0, err
    before = (tmp_path/'levels.json').read_bytes()
    code, err = levels(capsys, place, tmp_path, [*GOOD, record])
    assert code == 1 and all(s in err for s in says) and 'Traceback' not in err, err
    assert (tmp_path/'levels.json').read_bytes() == before


def test_level(capsys, place, tmp_path):
    "A level that the model does not have, in a chat and in training data."
    from aligngpt.core.errors import AlignGPTError
    from aligngpt.data.records import Records
    code, err = command(capsys, 'chat', place/'run', '--question', 'Hm?', '--image', place/'images'/'red.png',
                        '--level', 9)
    assert code == 1 and 'Invalid level 9. Valid range: 0-7' in err, err
    (tmp_path/'data.json').write_text(json.dumps([dict(GOOD[0], similarity=3), dict(GOOD[1], similarity=11)]))
    with pytest.raises(AlignGPTError) as e: Records(tmp_path/'data.json')
    assert all(s in str(e.value) for s in ('data.json: row 1', 'Invalid level 11. Valid range: 0-7')), e.value


def test_template(place):
    "A template that nobody knows."
    from aligngpt.checkpoints.layouts import load
    from aligngpt.core.errors import AlignGPTError
    _, processor = load(place/'run', device='cpu')
    with pytest.raises(AlignGPTError, match="Unknown template 'v2'. Valid: plain, v1"):
        processor.with_settings(template='v2')


def test_no_checkpoint(capsys, place):
    "A folder of pictures, and no folder at all."
    code, err = command(capsys, 'chat', place/'images', '--question', 'Hm?')
    assert code == 1 and 'not a checkpoint. Found: blue.png, cut.png, red.png' in err, err
    code, err = command(capsys, 'chat', place/'nowhere', '--question', 'Hm?')
    assert code == 1 and 'no such' in err, err


@pytest.mark.parametrize('command_line', ['chat {} --question Hm', 'convert {} {}.out', 'eval {} --out {}.eval',
                                          'serve {} --no-page --port 0'])
def test_neighbours(capsys, tmp_path, command_line):
    "What is nearly a checkpoint is named by each command that takes one."
    def make(name, **files):
        (tmp_path/name).mkdir(parents=True)
        for file, text in files.items(): (tmp_path/name/file.replace('__', '.')).write_text(text)
        return tmp_path/name
    pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n'
    llava, theirs = '{"model_type": "llava_llama"}', '{"model_type": "llava", "text_config": {}}'
    for folder, says in ((make('run/checkpoint-4', complete__json='{}'), 'a checkpoint in the middle of a run'),
                         (make('done', config__json=llava, model__safetensors=pointer), 'a git-lfs pointer'),
                         (make('theirs', config__json=theirs), 'a LLaVA of transformers (llava)'),
                         (make('lora', adapter_config__json='[]', non_lora_trainables__bin='', config__json=llava),
                          'adapter_config.json: a list, expected an object')):
        code, err = command(capsys, *command_line.format(folder, folder).split())
        assert code == 1 and says in err and 'hint: ' in err and 'should not happen' not in err, err


def test_full_disk(capsys, place, tmp_path):
    "No space left while results are written: said in a line, and no half result lies about."
    disk = tmp_path/'disk'
    disk.mkdir()
    if os.getuid() or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', disk],
                                     capture_output=True).returncode:
        pytest.skip('needs the right to mount a small file system')
    try:
        (tmp_path/'pairs.json').write_text(json.dumps(GOOD*100))
        code, err = command(capsys, 'levels', tmp_path/'pairs.json', '--images', place/'images', '--clip',
                            place/'clip', '--out', disk/'levels.json', '--device', 'cpu')
        assert code == 1 and 'no space left' in err and 'Traceback' not in err, err
        assert not [p for p in disk.rglob('*') if p.suffix in ('.json', '.parquet', '.tmp')
                    and p.name != 'job.json'] # scores stay, to go on from
    finally: subprocess.run(['umount', disk], check=True)


@pytest.mark.parametrize('kind', ['json', 'jsonl', 'parquet'])
@pytest.mark.parametrize('image', [{}, dict(image=None), dict(image=''), dict(image=[])],
                         ids=['left out', 'null', 'empty', 'none'])
def test_no_pictures(capsys, place, tmp_path, kind, image):
    "Not one record has a picture, or a column holds nothing at all: audited as it is, and no pairs to level."
    import pyarrow as pa, pyarrow.parquet as pq
    rows = [dict(id=None, **image, conversations=[{'from':'human', 'value':'Hi?'}, {'from':'gpt', 'value':'Hi.'}])]*3
    data = tmp_path/f'talks.{kind}'
    if kind == 'parquet': pq.write_table(pa.Table.from_pylist(rows), data)
    else: data.write_text(json.dumps(rows) if kind == 'json' else ''.join(json.dumps(r) + '\n' for r in rows))
    code, err = command(capsys, 'audit', data, '--images', place/'images', '--out', tmp_path/'audit', '--workers', 0)
    assert (code, 'rror' in err) == (0, False), err
    code, err = command(capsys, 'levels', data, '--images', place/'images', '--clip', place/'clip', '--out',
                        tmp_path/'levels.json', '--device', 'cpu')
    assert code == 1 and f'{data}: no record has exactly one picture' in err, err
    if kind == 'json':
        code, err = command(capsys, 'finetune', '--data', data, '--model', place/'run', '--out', tmp_path/'run',
                            '--device', 'cpu', '--max-steps', 1, '--features', tmp_path/'features', '--quiet')
        assert code == 0, err
