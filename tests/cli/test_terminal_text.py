"""Words of strangers on a terminal: names of files, records and pictures, questions and answers that hold commands for
it are shown, and command nothing."""
import json, re, shutil

import pytest

import world
from world import command

RUDE = '\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31m\x9b1A\u202e\u2066\x7f\rok' # clipboard, screen, colour, C1, bidi
SHOWN = r'\x1b]52;c;ZXZpbA==\x07\x1b[2J\x1b[31m\x9b1A\u202e\u2066\x7f\rok'
OWN = re.compile('\x1b\\[(2|0|[34]8?;?[0-9;]*)m') # our own colours: `show`, and the chat in a terminal


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    d = world.world(tmp_path_factory.mktemp('place'), pictures=8)
    shutil.copy(d/'images'/'0.png', d/'images'/f'{RUDE}.png')
    turns = [{'from':'human', 'value':f'<image>\n{RUDE}?'}, {'from':'gpt', 'value':RUDE}]
    said = [dict(id=RUDE, image=name, conversations=turns) for name in (f'{RUDE}.png', f'{RUDE} gone.png', '1.png')]
    (d/f'{RUDE}.json').write_text(json.dumps(said))
    asked = dict(question_id=RUDE, image='images/1.png', text=f'{RUDE}?', answer=RUDE)
    (d/f'{RUDE}.jsonl').write_text(json.dumps(asked))
    return d

def tame(code, said, want):
    "The command ended so, showed the words, and left the terminal alone."
    assert code == want, said
    said = said.replace('\r', '', said.count('\r') if '%|' in said else 0) # the bars' own
    bad = [c for c in OWN.sub('', said) if not c.isprintable() and c not in '\n\t']
    assert bad == [], ascii(said)
    return said

def commands(d):
    "(a command with the place's words, its exit code)."
    data, images, clip = d/f'{RUDE}.json', ('--images', d/'images'), ('--clip', d/'clip')
    yield ('audit', data, *images, '--out', 'audit', '--workers', 0), 1
    yield ('levels', data, *images, *clip, '--out', 'x.json'), 1
    yield ('levels', data, *images, *clip, '--out', 'x.json', '--policy', 'skip', '--cap', 1), 1
    yield ('show', data, *images, '--processor', d/'toy', '--row', 2), 0
    yield ('finetune', '--data', data, *images, '--model', d/'toy', '--out', 'f', *world.STAGE, '--max-steps', 2), 1
    yield ('eval', d/'toy', '--tasks', d/f'{RUDE}.jsonl', '--data', d, '--out', 'eval', '--device', 'cpu'), 0
    yield ('eval', RUDE, '--tasks', d/'asked.jsonl', '--data', d, '--out', 'eval', '--device', 'cpu'), 1
    yield ('unpack', data), 0
    yield ('convert', d/RUDE, 'x'), 1
    yield ('chat', d/'toy', '--image', d/f'{RUDE} gone.png', '--question', RUDE), 1

def test_commands(place):
    for args, code in commands(place): assert SHOWN in tame(*command(*args), code), args
    tame(*command(RUDE), 2)


def test_debug(place, monkeypatch):
    "A traceback, a library's warning and its log with such words."
    import logging, warnings
    assert SHOWN in tame(*command('convert', place/RUDE, 'x', '--debug'), 1)
    def refuse(*args, **kw):
        warnings.warn(RUDE)
        logging.getLogger('some.library').error('reading %s', RUDE)
        raise OSError(RUDE)
    monkeypatch.setattr('aligngpt.checkpoints.convert.convert', refuse)
    for debug in ((), ('--debug',)): assert SHOWN in tame(*command('convert', place/'toy', 'x', *debug), 1)
