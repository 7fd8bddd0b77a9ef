"""Each command that writes, on disks of different smallness: one sentence, nothing torn, and done when there is room."""
import io, os, subprocess, sys, tarfile
from pathlib import Path

import pytest

import world
from world import command

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    from aligngpt.data.archives import HEAD
    d, b = world.world(tmp_path_factory.mktemp('place')), io.BytesIO()
    with tarfile.open(fileobj=b, mode='w') as t:
        e = tarfile.TarInfo('a'); e.size = 500_000
        t.addfile(e, io.BytesIO(bytes(e.size)))
    b = b.getvalue()
    (d/'film.mp4').write_bytes(HEAD + b[32:] + b[:32])
    (d/'answers.jsonl').write_text(''.join(f'{{"question_id": {i}, "text": "red"}}\n' for i in range(6)))
    return d


def writers(d, o):
    "The commands, which write to `o`."
    images = '--images', d/'images'
    return dict(
        levels=['levels', d/'pairs.json', *images, '--clip', d/'clip', '--out', o/'l.json', '--device', 'cpu'],
        audit=['audit', d/'pairs.json', *images, '--out', o/'audit', '--workers', 0],
        unpack=['unpack', d/'film.mp4', '--out', o, '--extract-to', o/'x'],
        convert=['convert', d/'toy', o/'c', '--to', 'official'],
        pretrain=world.pretrain(d, o/'p', '--max-steps', 2, '--features', o/'f'),
        finetune=world.finetune(d, d/'toy', o/'t', '--max-steps', 2),
        eval=['eval', d/'toy', '--tasks', d/'asked.jsonl', '--out', o/'e', '--device', 'cpu'],
        score=['score', d/'asked.jsonl', '--data', d, '--predictions', d/'answers.jsonl', '--json', o/'s.json'])


@pytest.mark.parametrize('name', writers(Path(), Path()))
def test_full_disk(place, tmp_path, name):
    disk = tmp_path/'disk'
    disk.mkdir()
    def mount(*how): return subprocess.run(['mount', '-t', 'tmpfs', '-o', *how, 'tmpfs', disk], capture_output=True)
    for size in ('4k', '24k', '100k', '700k'):
        if os.getuid() or mount(f'size={size}').returncode: pytest.skip('needs the right to mount a small file system')
        try:
            args = ['-m', 'aligngpt.cli', *map(str, writers(place, disk)[name])]
            env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
            run = lambda: subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)
            done = run() # in a process of its own: one that is killed is not told by an exception
            said = done.stderr[-2000:]
            assert done.returncode in (0, 1), (size, done.returncode, said)
            assert not [p for p in disk.rglob('*') if p.suffix in ('.tmp', '.old')], size
            if done.returncode:
                assert 'disk is full' in said or 'no space left' in said or 'bytes are needed' in said, (size, said)
                assert 'Traceback' not in said and 'should not happen' not in said, (size, said)
                assert mount('remount,size=1g').returncode == 0
                assert run().returncode == 0, size
        finally: subprocess.run(['umount', '-l', disk], check=True)
