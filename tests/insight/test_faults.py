"""Faults that are planted are named, and healthy runs are called healthy. The whole matrix is in the chapter *Planted
faults* of the part *Testing*; here some of it, and all of it by `pytest -m slow tests/insight/test_faults.py -s`."""
import os
from pathlib import Path

import pytest
from transformers.utils import logging

from aligngpt.testing.faults import BASES, PLANTS, Case, base, healthy, matrix, trial

logging.set_verbosity_error()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    base(folder/'made'/'base-32', 32, steps=3) # what is planted shows without a language model that can read
    return folder


@pytest.mark.parametrize('name', ['no first token', 'levels constant'])
def test_some(made, name):
    fault, = [p for p in PLANTS if p.name == name]
    assert trial(Case(fault.stage, 32, seed=5, batch=4), made, fault)['named']


def table(rows):
    "A line for each fault."
    names = dict.fromkeys((r.get('kind', 0), r['fault']) for r in rows)
    return '\n'.join(f"{kind:>2} {name:36} {sum(r['named'] for r in rows if r['fault'] == name)} of "
                     f"{sum(r['fault'] == name for r in rows)}" for kind, name in names)


@pytest.mark.slow
@pytest.mark.parametrize('llm', BASES)
def test_matrix(llm, tmp_path):
    folder = Path(os.environ.get('ALIGNGPT_TRIALS', tmp_path))
    rows = matrix(folder, seeds=(1, 2, 3), llm=llm)
    print('\n' + table(rows))
    kinds = {k:all(r['named'] for r in rows if r['kind'] == k) for k in range(1, 25)}
    assert sum(kinds.values()) >= 22, [k for k, ok in kinds.items() if not ok]


@pytest.mark.slow
@pytest.mark.parametrize('llm', BASES)
def test_healthy(llm, tmp_path):
    rows = healthy(Path(os.environ.get('ALIGNGPT_TRIALS', tmp_path)), llm)
    assert len(rows) >= 6 and not [(r['stage'], r['width'], r['seed'], r['found']) for r in rows if r['found']]
