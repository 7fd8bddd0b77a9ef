import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from aligngpt.core.markup import Table
from aligngpt.text.conversation import TEMPLATES
from aligngpt.model.decoding import Ask, answers
from aligngpt.training.signs import PROBES, Finding, probe

class Question(NamedTuple):
    "One of the twelve."
    name:str # in a word
    text:str # as it is asked
    looks:bool=True # is it about the picture?

TWELVE = (
    Question('nothing', 'Say nothing but "ok".', False), Question('describe', 'Describe the picture.'),
    Question('short', 'Describe it in one word.'), Question('yes or no', 'Is this a photo? Answer yes or no.'),
    Question('other yes or no', 'Is the picture all black? Answer yes or no.'),
    Question('colour', 'What colour is it?'),
    Question('count', 'How many things are there?'), Question('place', 'What is in the middle?'),
    Question('read', 'Read the text in the picture.'), Question('refuse', 'What is the name of the person?'),
    Question('no picture', 'What is two and two?', False), Question('stop', 'Stop.', False))

def test_picture(
    side:int=96, # in pixels
)->Image.Image: # RGB
    "A picture with something to say about: a red disc and a blue box on white."
    im = Image.new('RGB', (side, side), 'white')
    d, s = ImageDraw.Draw(im), side//12
    d.ellipse((s, s, 5*s, 5*s), fill='crimson')
    d.rectangle((6*s, 6*s, 11*s, 11*s), fill='royalblue')
    return im

@dataclass
class Said:
    "What a model said."
    answers:dict # (name of the question, level or None, with picture?) -> text
    limit:int # tokens that an answer may have
    full:int # answers that reached it

    def table(self)->Table: # a row for each question
        "The answers as the gate decides, with and without the picture."
        rows = [(q.text, self.answers[q.name, None, True], self.answers[q.name, None, False]) for q in TWELVE]
        return Table(rows, ('question', 'with the picture', 'without'))

def talk(
    model:Any, # an AlignGPT
    processor:Any, # its processor
    picture:Any=None, # to ask about; default: `test_picture`
    levels:tuple[int,...]|None=None, # to force; default: all
    tokens:int=32, # of an answer, at most
)->Said:
    "Ask the twelve questions."
    picture, said = picture or test_picture(), {}
    levels = range(model.config.num_levels) if levels is None else levels
    asks = [(q, shown) for q in TWELVE for shown in (True, False)]
    for level in (None, *levels):
        here = [(q, shown) for q, shown in asks if shown or level is None] # without a picture there is no level
        some = [Ask(q.name, q.text, 'picture' if shown else None) for q, shown in here]
        for part in answers(model, processor, some, lambda name: picture, tokens, 12, alignment=level):
            said.update({(here[i][0].name, level, here[i][1]):text for i, text in part})
    full = sum(len(processor.tokenizer(t, add_special_tokens=False).input_ids) >= tokens - 2 for t in said.values())
    return Said(said, tokens, full)

PROBES.setdefault('talk', [])

def _gate(said, shown=True): return {q.name:said.answers[q.name, None, shown] for q in TWELVE}

@probe('talk')
def silent(
    said:Said, # answers
)->Finding|None:
    "Nothing is said."
    empty = [q for q in TWELVE if not said.answers[q.name, None, True].strip()]
    if len(empty) >= 4: return Finding('silent', .9, None, dict(ask=empty[0].text))

@probe('talk')
def endless(
    said:Said, # answers
)->Finding|None:
    "Answers that do not end."
    if (share := said.full/len(said.answers)) > .5:
        return Finding('endless', .8, None, dict(share=share, limit=said.limit))

@probe('talk')
def repeats(
    said:Said, # answers
)->Finding|None:
    "The same words again and again."
    loops = [bool(re.search(r'\b(\w[^\n]{2,40}?)(?:\W+\1){2}', t)) for t in said.answers.values()]
    if (share := sum(loops)/len(loops)) > .3: return Finding('repeats', .8, None, dict(share=share))

@probe('talk')
def one_answer(
    said:Said, # answers
)->Finding|None:
    "The same to all questions."
    (text, n), = Counter(_gate(said).values()).most_common(1)
    if n >= 10 and text: return Finding('same answer', .8, None, dict(n=n, text=text[:60]))

@probe('talk')
def blind(
    said:Said, # answers
)->Finding|None:
    "The same with a picture and without."
    looks = [q.name for q in TWELVE if q.looks]
    same = sum(_gate(said)[n] == _gate(said, False)[n] for n in looks)
    if same == len(looks): return Finding('blind', .8, None, dict(same=same, n=len(looks)))

@probe('talk')
def idle_levels(
    said:Said, # answers
)->Finding|None:
    "The same at all levels."
    levels = {k[1] for k in said.answers} - {None}
    if len(levels) < 2: return None
    if all(len({said.answers[q.name, l, True] for l in levels}) == 1 for q in TWELVE):
        return Finding('levels idle', .7, None, dict(n=len(TWELVE)))

@probe('talk')
def marks(
    said:Said, # answers
)->Finding|None:
    "Marks of a template in answers."
    known = {m.strip() for t in TEMPLATES.values() for m in (t.before_user, t.before_answer)
             if m.strip() and '{' not in m}
    found = [m for t in said.answers.values() for m in known if m in t]
    if len(found) > .1*len(said.answers): return Finding('marks said', .9, None, dict(mark=found[0]))