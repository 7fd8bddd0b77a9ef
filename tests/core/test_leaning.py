"""What is used of other libraries' inside is in the list of `aligngpt.core.versions`, all of it; and where
something is gone, the rest works."""
import ast, importlib, inspect, re
from pathlib import Path
from unittest.mock import patch

import pytest, torch
from fastcore.test import test_close as close

import aligngpt
from aligngpt.model.layers import has_sparse_tail
from aligngpt.core.versions import LEANS
from small import CHATS, batch, build

home = Path(aligngpt.__file__).parent
apart = 'vllm_model', 'vllm_plugin', 'lmms_eval', '_modidx' # plugins, tried beside their hosts
files = [p for p in sorted(home.rglob('*.py')) if p.stem not in apart]
listed = set(re.findall(r'\b_[a-z]\w*', ' '.join(l.name for l in LEANS)))
protocols = {'_repr_html_', '_repr_markdown_', '_repr_png_', '_repr_mimebundle_', '_replace', '_asdict',
             '_fields', '_exit'} # documented


def private(name): return name.startswith('_') and not name.startswith('__') and name != '_'


def own_names():
    "Everything that some module of ours defines or sets."
    res = set()
    for n in (n for p in files for n in ast.walk(ast.parse(p.read_text(encoding='utf-8')))):
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): res.add(n.name)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store): res.add(n.id)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store): res.add(n.attr)
    return res


def used_names(tree):
    "(line, name) of each private attribute that is read, asked for or imported."
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute): yield n.lineno, n.attr
        if isinstance(n, ast.ImportFrom) and not n.level:
            yield from ((n.lineno, part) for a in n.names for part in (*(n.module or '').split('.'), a.name))
        if isinstance(n, ast.Call) and getattr(n.func, 'id', '') in ('getattr', 'hasattr') and isinstance(n.args[1], ast.Constant):
            yield n.lineno, str(n.args[1].value)


def test_private_names_are_listed():
    known = own_names() | listed | protocols
    odd = [f'{p.relative_to(home)}:{line} {name}' for p in files
           for line,name in used_names(ast.parse(p.read_text(encoding='utf-8')))
           if private(name) and name not in known]
    assert not odd, f'not in LEANS (nbs/core/08_versions.ipynb): {odd}'


def written(cls, name):
    "Is this attribute a function of ours, or one that the class sets in its body? Metaclasses of libraries set others."
    value = inspect.getattr_static(cls, name)
    module = getattr(getattr(value, '__func__', getattr(value, 'fget', value)), '__module__', None)
    return ((module or '').startswith('aligngpt')
            or bool(re.search(rf'^    (.*= *)?{name} *=', inspect.getsource(cls), re.M)))


def test_private_overrides_are_listed():
    odd = []
    for p in files:
        try:
            m = importlib.import_module('.'.join(('aligngpt',
                                                  *p.relative_to(home).with_suffix('').parts)).removesuffix('.__init__'))
        except ModuleNotFoundError as e:
            if (e.name or '').startswith('aligngpt'): raise
            continue # an extra that is not installed
        for c in (c for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__):
            others = {n for b in c.__mro__[1:] if not b.__module__.startswith(('aligngpt', 'builtins'))
                      for n in vars(b)}
            odd += [f'{c.__name__}.{n}' for n in vars(c) if private(n) and written(c, n)
                    and n in others - listed - protocols]
    assert not odd, f'not in LEANS (nbs/core/08_versions.ipynb): {odd}'


@pytest.mark.parametrize('lean', LEANS, ids=lambda l: f'{l.library} {l.name.split(",")[0]}')
def test_lean(lean): assert not lean.changed()


def test_the_list_is_as_long_as_it_must_be():
    text = ' '.join(p.read_text(encoding='utf-8') for p in files if p.stem != 'versions')
    idle = [n for n in listed if n not in text]
    assert not idle, f'no longer used: {idle}'


def test_without_the_copied_layer():
    model, b = build().train(), batch(CHATS, 'right', prompt=False)
    labels = b['input_ids'].masked_fill(b['input_ids'] >= model.config.text_config.vocab_size, -100)
    def results():
        loss = model(**b, labels=labels).loss
        with torch.no_grad(): first = model.eval()(**batch(CHATS), use_cache=True, logits_to_keep=1).logits
        return loss.item(), first
    ours, fast = results()
    with patch('aligngpt.model.layers.knows_llama', return_value=False):
        assert not has_sparse_tail(model.language_model)
        model.train()
        whole, slow = results()
    close(ours, whole, 1e-5)
    close(fast, slow, 1e-5)
