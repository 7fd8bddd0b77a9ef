"""Every example of every help text is taken as it stands: by the parser of its command, and by what reads it then."""
import re, shlex

import pytest, typer
from aligngpt.cli.experiment import commands_in
from aligngpt.cli.main import app
from aligngpt.cli.train import gather
from aligngpt.core.values import read_value
from aligngpt.data.selection import level_numbers
from aligngpt.levels.columns import score_columns
from aligngpt.levels.scoring import edges_of
from aligngpt.training.settings import FINETUNE, KINDS, PRETRAIN, read_setting

EXAMPLE = re.compile(r"(?:as in|e\.g\.|such as|share:)\s+(`[^`]+`|'[^']*'|\{[^}]*\}|\S+)")
COMMANDS = commands_in(typer.main.get_command(app))
STAGES = dict(pretrain=PRETRAIN, finetune=FINETUNE)


def texts():
    "(command, option or None, help text) of all there are."
    for name, command in COMMANDS.items():
        yield name, None, command.help or ''
        for p in command.params: yield name, p, getattr(p, 'help', None) or ''

def bare(example):
    "An example without the quotes and the full stop of its sentence."
    return example.strip('`').rstrip('.,;:').strip("'") if example[0] in "`'" else example.rstrip('.,;:')

def columns(text):
    "What `--from-column` makes of a word."
    names = re.findall(r'[a-z]\w*', text)
    return score_columns(iter([(0, {n: [.1, .2, .3] for n in names})]), [text], 2)

READERS = dict(levels=level_numbers, from_column=columns, edges=lambda text: edges_of(text, ''),
               fresh=lambda text: read_value(text, tuple[str,...])) # where a command reads a word later

EXAMPLES = [(name, p.name, bare(e)) for name, p, text in texts() if p for e in EXAMPLE.findall(text)]


def parsed(name, words):
    "What the parser makes of a line, with something for each option that is needed."
    command = COMMANDS[name]
    need = [p for p in command.params if p.required and p.opts[0] not in words]
    line = [w for p in need if p.param_type_name == 'option' for w in (p.opts[0], 'x')]
    return command.make_context(name, [*line, *words, *('x' for p in need if p.param_type_name == 'argument')]).params


def test_there_are_examples():
    assert {(n, k) for n, k, _ in EXAMPLES} >= {('finetune', 'part_rates'), ('levels', 'edges'), ('convert', 'fresh')}

@pytest.mark.parametrize('name, option, example', EXAMPLES)
def test_an_example_is_taken(name, option, example):
    flag = next(p.opts[0] for p in COMMANDS[name].params if p.name == option)
    params = parsed(name, [flag, example])
    if name in STAGES: gather({option: params[option]})
    if option in READERS and isinstance(params[option], (str, list)): READERS[option](example)

@pytest.mark.parametrize('name', STAGES)
def test_a_default_is_taken_as_it_is_printed(name):
    for p in COMMANDS[name].params:
        if p.name not in KINDS: continue
        said = re.search(r'Default: (.*)\.$', p.help)[1]
        assert read_setting(p.name, said) == getattr(STAGES[name], p.name), (p.name, said)

def test_what_is_named_is_there():
    "Options and commands in the help texts exist."
    for name, p, text in texts():
        for words in map(shlex.split, re.findall('`([^`\']+)`', text)):
            if words[0].startswith('--'):
                assert any(words[0] in (*q.opts, *q.secondary_opts) for q in COMMANDS[name].params), (name, words)
            if words[0] == 'aligngpt': assert words[1] in COMMANDS, (name, words)
