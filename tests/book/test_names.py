"A name is defined once in a module: the second definition would silently replace the first."
import ast
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[2]/'aligngpt'


def names(source):
    "What a module defines at its top; a patched method is told apart by its class."
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef): yield node.name
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            patched = any('patch' in ast.unparse(d) for d in node.decorator_list)
            yield f'{ast.unparse(node.args.args[0].annotation)}.{node.name}' if patched else node.name


@pytest.mark.parametrize('path', sorted(root.rglob('*.py')), ids=lambda p: str(p.relative_to(root)))
def test_defined_once(path):
    assert [n for n,k in Counter(names(path.read_text(encoding='utf-8'))).items() if k > 1] == []

def test_a_second_definition_is_seen():
    two = 'def f(): pass\n@patch\ndef f(self:A): pass\n@patch\ndef f(self:B): pass\ndef f(): pass'
    assert [n for n,k in Counter(names(two)).items() if k > 1] == ['f']


@pytest.mark.parametrize('path', sorted(root.rglob('*.py')), ids=lambda p: str(p.relative_to(root)))
def test_no_private_name_of_another_module(path):
    imports = [o for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(o, ast.ImportFrom)]
    ours = [o for o in imports if o.level or (o.module or '').startswith('aligngpt')]
    assert [f'{o.module}.{a.name}' for o in ours for a in o.names if a.name[0] == '_' and a.name[:2] != '__'] == []


def test_every_extra_is_in_the_guide():
    ini = ConfigParser(delimiters='=')
    ini.read(root.parent/'settings.ini', encoding='utf-8')
    guide = (root.parent/'docs_src'/'guides'/'install.md').read_text(encoding='utf-8')
    extras = [k.removesuffix('_requirements') for k in ini['DEFAULT'] if k.endswith('_requirements')]
    assert [e for e in extras if f'| `{e}` |' not in guide] == []
