"Two runs of the same commands leave the same files, byte by byte; no file names a place of this machine."
import shutil, subprocess, sys

import pytest

import world
from world import command, differing, files, finetune, pretrain


def work(d):
    "Each command that writes a folder, with absolute paths."
    steps = '--max-steps', 5, '--save-every', 2
    yield pretrain(d, d/'pre', '--valid', .1, '--eval-every', 3, '--features', d/'features', *steps)
    yield finetune(d, d/'pre', d/'fine', *steps)
    yield finetune(d, d/'pre', d/'lora', '--lora', 2, *steps)
    yield 'levels', d/'pairs.json', '--images', d/'images', '--clip', d/'clip', '--out', d/'levels'/'out.json'
    yield 'audit', d/'bad.json', '--images', d/'images', '--out', d/'audit', '--workers', 0
    yield 'eval', d/'fine', '--tasks', d/'asked.jsonl', '--data', d, '--out', d/'eval', '--device', 'cpu'
    yield 'convert', d/'fine'/'model', d/'converted'
    yield 'caption', d/'images', '--model', d/'fine', '--out', d/'said'/'said.jsonl', '--device', 'cpu'
    yield ('recaption', d/'levels'/'out.json', '--images', d/'images', '--model', d/'fine', '--clip', d/'clip', '--out',
           d/'said'/'better.json', '--device', 'cpu')

def test_two_folders(tmp_path):
    one, two = tmp_path/'one', tmp_path/'a folder of another name'
    one.mkdir()
    world.world(one)
    shutil.copytree(one, two)
    for d in (one, two):
        for args in work(d):
            code, said = command(*args)
            assert code == (args[0] == 'audit'), said
    made = files(one)
    assert {'pre/done.json', 'fine/checkpoint-4/optimizer.pt', 'lora/model/adapter_config.json',
            'levels/out.parquet', 'audit/report.html', 'eval/asked/score.json', 'eval/asked/report.html',
            'converted/config.json', 'said/said.jsonl', 'said/better.json', 'said/better.html'} <= made.keys()
    assert differing(one, two) == []
    assert [k for k,v in made.items() if str(tmp_path).encode() in v] == []
    assert sorted(p.parent.name for p in one.rglob('timing.jsonl')) == ['fine', 'lora', 'pre']

@pytest.mark.slow
def test_two_quickstarts(tmp_path):
    for name in ('one', 'another'):
        subprocess.run([sys.executable, '-m', 'aligngpt.cli', 'quickstart', '--rehearse', '--out', tmp_path/name],
                       check=True, capture_output=True)
    assert differing(tmp_path/'one', tmp_path/'another') == []
    assert [k for k,v in files(tmp_path/'one').items() if str(tmp_path).encode() in v] == []
