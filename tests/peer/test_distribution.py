"""What a release uploads: built from a copy of the tree, installed alone, and run from another folder."""

import os, subprocess, sys, tarfile, zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.peer # the registry has the tools that build it

def pip(*args): subprocess.run([sys.executable, '-m', 'pip', '-q', *args], check=True)

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The source distribution, and the wheel that pip makes of it."
    out = tmp_path_factory.mktemp('dist')
    tracked = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, tracked.split('\0')):
        (out/'tree'/name).parent.mkdir(parents=True, exist_ok=True)
        (out/'tree'/name).write_bytes((ROOT/name).read_bytes())
    pip('install', '--target', out/'tools', 'setuptools', 'wheel')
    build = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, '-c', build], cwd=out/'tree', check=True, capture_output=True,
                   env={**os.environ, 'PYTHONPATH':str(out/'tools')})
    [sdist] = (out/'tree'/'dist').glob('*.tar.gz')
    pip('wheel', '--no-deps', '-w', out, sdist)
    [wheel] = out.glob('*.whl')
    return sdist, wheel

def test_the_wheel_made_of_the_source_holds_what_the_tree_has(built):
    "Modules, and what they read: styles, scripts, pages, tables."
    sdist, wheel = built
    here = subprocess.run(['git', 'ls-files', 'aligngpt'], cwd=ROOT, capture_output=True, text=True).stdout.split()
    here = {n for n in here if not n.startswith('aligngpt/testing/')} # what only tests need stays at home
    packed = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as f: sent = {n.split('/', 1)[1] for n in f.getnames() if '/' in n}
    assert here <= packed and here <= sent
    assert {n.split('/')[0] for n in packed if not n.split('/')[0].endswith('.dist-info')} == {'aligngpt'}

@pytest.mark.parametrize('which', [0, 1], ids=['sdist', 'wheel'])
def test_each_works_alone(built, which, tmp_path):
    "Installed by itself, it answers in a folder that holds nothing."
    pip('install', '--no-deps', '--target', tmp_path/'site', built[which])
    (tmp_path/'here').mkdir()
    def run(*args):
        done = subprocess.run([sys.executable, '-m', 'aligngpt.cli', *args], cwd=tmp_path/'here', capture_output=True,
                              text=True, env={**os.environ, 'PYTHONPATH':str(tmp_path/'site')})
        assert done.returncode == 0, done.stderr
        return done.stdout
    where = subprocess.run([sys.executable, '-c', 'import aligngpt; print(aligngpt.__file__)'], cwd=tmp_path/'here',
                           capture_output=True, text=True, env={**os.environ, 'PYTHONPATH':str(tmp_path/'site')})
    assert where.stdout.startswith(str(tmp_path/'site'))
    assert run('--version').startswith('aligngpt ') and 'aligngpt-7b' in run('zoo')
