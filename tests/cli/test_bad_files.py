"""Files of data in which every record is wrong, that are empty, or that are no files: one sentence, in each command."""
import gzip, io, os, tarfile
from pathlib import Path

import pyarrow as pa, pyarrow.parquet as pq
import pytest

import world
from world import command

BAD = b'{"prompt": 1}\n{"x": 2}\n'


def tar(path, **entries):
    with tarfile.open(path, 'w') as t:
        for name, data in entries.items():
            info = tarfile.TarInfo(name.replace('_', '.'))
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Files that are wrong, and those that belong to a command."
    d = world.world(tmp_path_factory.mktemp('bad'), pictures=4)
    files = d/'files'
    files.mkdir()
    for name, data in {'bad.jsonl':BAD, 'bad.jsonl.gz':gzip.compress(BAD), 'bad.csv':b'a,b\n1,2\n',
                       'bad.tsv':b'a\tb\n1\t2\n', 'numbers.json':b'[1, 2]', 'nulls.json':b'[null]',
                       'strings.jsonl':b'"a"\n', 'lines.jsonl':b'nope\n',
                       'deep.json':b'['*100_000, 'deep.jsonl':b'['*100_000 + b'\n',
                       'head.csv':b'a,b\n', 'list.json':b'[]',
                       'broken.jsonl.gz':b'hello'}.items(): (files/name).write_bytes(data)
    for kind in ('json', 'jsonl', 'csv', 'tsv', 'parquet', 'jsonl.gz'): (files/f'empty.{kind}').touch()
    for name, table in dict(bad={'a':[1]}, rows={'a':pa.array([], pa.int64())}, columns={}).items():
        pq.write_table(pa.table(table), files/f'{name}.parquet')
    tar(files/'bad.tar', a_json=b'{"prompt": 1}', b_json=b'[1]')
    tar(files/'empty.tar')
    tar(files/'text.tar', a_txt=b'hello')
    for folder, name, data in (('none', '', b''), ('images', 'metadata.csv', b'file_name,text\n'),
                               ('others', 'metadata.jsonl', b'{"a": 1}\n')):
        (files/folder).mkdir()
        if name: (files/folder/name).write_bytes(data)
    (files/'mixed').mkdir()
    for name in ('bad.parquet', 'empty.tar'): os.link(files/name, files/'mixed'/name)
    os.mkfifo(files/'pipe.json')
    return d

def commands(d, data):
    images, out = ('--images', d/'images'), d/'out'/data.name
    yield 'audit', data, *images, '--out', out/'audit', '--workers', 0
    for policy in ('error', 'skip'):
        yield 'levels', data, *images, '--clip', d/'clip', '--out', out/f'{policy}.json', '--policy', policy, '--cap', 1
    yield 'show', data, *images, '--processor', d/'toy'
    for stage in ('pretrain', 'finetune'):
        yield stage, '--data', data, *images, '--model', d/'toy', '--out', out/stage, *world.STAGE, '--max-steps', 1

def told(code, said):
    "The command ended with one sentence, and not by accident."
    assert code == 1 and 'should not happen' not in said, said
    return said

def test_each(place):
    for data in sorted([*(place/'files').iterdir(), Path('/dev/zero')]):
        for args in list(commands(place, data))[:3]: assert data.name in told(*command(*args)), args

@pytest.mark.parametrize('name', ['bad.jsonl', 'bad.tar', 'bad.parquet', 'empty.csv', 'pipe.json'])
def test_more(place, name):
    for args in list(commands(place, place/'files'/name))[3:]: told(*command(*args))

def test_first_record(place):
    "The first record, what was expected, and which format it resembles."
    for name in ('bad.jsonl', 'bad.tar', 'bad.csv', 'bad.parquet'):
        for args in list(commands(place, place/'files'/name))[1:3]:
            said = told(*command(*args))
            assert 'row 0' in said and 'resembles' in said and 'looks like' in said, said
