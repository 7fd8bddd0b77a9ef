"""transformers' own tests, fetched from the package registry: the mixins with which it tests each of its models.

Its source distribution has them in `tests/`, without the folders that they import from: `STUBS` are the least that
stands in for these. Nothing of it is kept in this repository, and nothing of it is changed.
"""
import functools, importlib, re, subprocess, sys, tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from filelock import FileLock

PACKAGE = 'transformers_suites' # what its `tests` is called here
REGISTRY = 'pip download -q --no-deps --no-binary transformers --disable-pip-version-check --retries 1'

PARAMETERIZED = '''
import functools, re

class parameterized:
    "`expand` of the library of this name: a test for each case, made when its class is."
    def __init__(self, test, cases): self.test, self.cases = test, cases

    @classmethod
    def expand(cls, cases, **kwargs): return lambda test: cls(test, cases)

    def __set_name__(self, owner, name):
        delattr(owner, name)
        for i,case in enumerate(self.cases):
            args = case if isinstance(case, (list, tuple)) else [case]
            label = re.sub('[^a-zA-Z0-9_]+', '_', args[0]) if isinstance(args[0], str) else ''
            setattr(owner, f'{name}_{i}' + f'_{label}'*bool(label), self.of(args))

    def of(self, args):
        @functools.wraps(self.test)
        def test(obj): return self.test(obj, *args)
        del test.__wrapped__ # it takes no argument
        return test
'''

DISTRIBUTED = '''
import os, torch.distributed as dist, torch.multiprocessing as processes

def _get_distributed_backend(): return 'gloo'
def _get_distributed_device_type(): return 'cpu'
def _get_rank_device(rank):
    import torch
    return torch.device('cpu')
def _set_rank_device(rank): pass
def _start_rank_processes(work, args, nprocs): processes.start_processes(work, args, nprocs, start_method='spawn')

def _joined(rank, work, args, world_size, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    store = dist.TCPStore('localhost', port, world_size=None, is_master=False)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=world_size)
    work(rank, *args)
    dist.destroy_process_group()

def run_distributed(world_size):
    def start(work):
        def run(*args):
            store = dist.TCPStore('localhost', 0, world_size=None, is_master=True, wait_for_workers=False)
            _start_rank_processes(_joined, (work, args, world_size, store.port), world_size)
        return run
    return start
'''

FILES = '''
from pathlib import Path

def url_to_local_path(url):
    "A picture of this name, drawn; another file's address as it is."
    file = Path(__file__).parent/'files'/url.split('/')[-1]
    if file.suffix not in ('.png', '.jpg') or file.exists(): return str(file) if file.exists() else url
    from PIL import Image
    file.parent.mkdir(exist_ok=True)
    Image.linear_gradient('L').resize((96, 56)).convert('RGB').save(file)
    return str(file)
'''

STUBS = { # what the suites import and the source distribution has not
    'src/transformers/__init__.py': '',
    f'{PACKAGE}/__init__.py': '',
    f'{PACKAGE}/exporters/__init__.py': '',
    f'{PACKAGE}/exporters/test_export.py': 'class ExportTesterMixin: pass',
    f'{PACKAGE}/generation/__init__.py': '',
    f'{PACKAGE}/generation/test_utils.py': 'class GenerationTesterMixin: pass',
    f'{PACKAGE}/utils/__init__.py': '',
    f'{PACKAGE}/utils/test_configuration_utils.py': 'config_common_kwargs = {}',
    'tests/utils/tiny_model_summary.json': '{}',
    f'{PACKAGE}/distributed_testing_utils.py': DISTRIBUTED,
    'fetch_hub_objects_for_ci.py': FILES,
    'parameterized.py': PARAMETERIZED}


def fetch(
    folder:Path, # where to; its `sdist` keeps the download
    release:str, # of transformers
)->Path: # the source distribution
    "Let pip download a release's source."
    command = [sys.executable, '-m', *REGISTRY.split(), '-d', folder/'sdist', f'transformers=={release}']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: raise OSError(next((l for l in done.stderr.splitlines()[::-1] if l), 'pip download failed'))
    return next((folder/'sdist').glob('*.tar.gz'))

def unpack(
    archive:Path, # a source distribution
    folder:Path, # where to
):
    "Unpack its `tests` alone."
    with tarfile.open(archive) as tar:
        for member in tar:
            _, top, *below = member.name.split('/')[:2] + ['/'.join(member.name.split('/')[2:])]
            if top != 'tests' or not member.isfile(): continue
            (file := folder/PACKAGE/below[0]).parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(member).read())

def pipelines(
    folder:Path, # where the suites are
)->dict[str,str]: # stubs
    "Older releases import the tests of all pipelines."
    suite = folder/PACKAGE/'test_pipeline_mixin.py'
    named = re.findall(r'^from [.](pipelines[.]\w+) import (\w+)', suite.read_text(encoding='utf-8'), re.M)
    return {f"{PACKAGE}/{module.replace('.', '/')}.py": f'class {name}: pass' for module,name in named}

@functools.cache
def prepare(
    folder:Path, # kept from run to run
)->None: # or `OSError`, where the registry cannot be reached
    "Make the suites of the installed release importable."
    folder = Path(folder)/version('transformers')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{folder}.lock'):
        if not (folder/'ready').exists(): unpack(fetch(folder, folder.name), folder)
        for path,text in {**STUBS, **pipelines(folder)}.items():
            (folder/path).parent.mkdir(parents=True, exist_ok=True)
            if not (folder/path).exists() or (folder/path).read_text() != text: (folder/path).write_text(text)
        (folder/'ready').touch()
    sys.path.append(str(folder))

def marks()->set[str]: # names
    "The marks that the suites' tests carry."
    import transformers.testing_utils as utils
    files = [Path(utils.__file__), *Path(importlib.import_module(PACKAGE).__file__).parent.glob('*.py')]
    return {m for f in files for m in re.findall(r'\bmark\.(\w+)', f.read_text(encoding='utf-8'))}

def suite(
    name:str, # of a module of its tests
    *names:str, # in it
)->list: # what these names are there; an empty class for one that this release has not
    "Import a suite."
    if importlib.util.find_spec(f'{PACKAGE}.{name}') is None: return [type(n, (), {}) for n in names]
    module = importlib.import_module(f'{PACKAGE}.{name}')
    return [getattr(module, n) for n in names]

def leaving_out(
    reasons:dict[str,str], # name of a test, or names that it had in several releases with | between; why it cannot hold
):
    "Decorator of a test class: these tests must be there, and must fail."
    def mark(cls):
        for names,why in reasons.items():
            there = [n for n in names.split('|') if n in dir(cls)]
            assert there, f'{names} is left out of {cls.__name__}, and is in none of its suites'
            for n in there: setattr(cls, n, _must_fail(getattr(cls, n), why))
        return cls
    return mark

def _must_fail(test, why):
    @functools.wraps(test)
    def run(self): return test(self)
    return pytest.mark.xfail(strict=True, reason=why)(run)
