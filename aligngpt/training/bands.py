import math
from collections import Counter
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from aligngpt.core.files import read_json
from aligngpt.training.signs import Facts, Finding, Row, probe

@lru_cache(maxsize=1)
def trajectories()->tuple[dict,...]: # stage, lora, width, vocabulary, rate, steps, losses, grads
    "Healthy runs, as they were recorded."
    return tuple(read_json(files(__package__)/'trajectories.json')['runs'])

def reference(
    stage:Any, # a `StageConfig`
    config:Any, # of the model
    lora:bool=False, # adapters in the language model?
)->dict|None: # a line of `trajectories`
    "The healthy runs of the same stage of the same model."
    if stage is None or config is None: return None
    key = stage.name, bool(lora), config.text_config.hidden_size, config.text_config.vocab_size
    return next((t for t in trajectories() if (t['stage'], t['lora'], t['width'], t['vocabulary']) == key), None)

class Band(NamedTuple):
    "What is expected."
    steps:list[int] # ascending
    low:list[float] # losses
    high:list[float] # losses
    why:str # where it comes from

    def at(self,
        step:int, # of a run
    )->tuple[float,float]: # (lower, upper) bound
        "What is expected at a step."
        return float(np.interp(step, self.steps, self.low)), float(np.interp(step, self.steps, self.high))

def reference_band(
    t:dict, # a line of `trajectories`
    room:float=.3, # share of the loss, on both sides
)->Band:
    "The range of healthy runs, with some room."
    x = np.array(t['losses'])
    return Band(t['steps'], (x.min(0)*(1 - room)).tolist(), (x.max(0)*(1 + room)).tolist(),
                f'{len(x)} healthy runs of the same model')

def unigram_entropy(
    rows:list[Row], # samples
)->float: # nats
    "The entropy of the tokens that are learnt: the loss of a model that knows nothing but how often each occurs."
    n = Counter(l for r in rows for l in r.labels if l != -100)
    p = np.array(list(n.values()))/max(1, n.total())
    return float(-(p*np.log(p)).sum())

def theory_band(
    vocabulary:int, # tokens, V
    entropy:float, # of the answers' single tokens, nats
    settled:int=100, # step at which token frequencies are learnt
)->Band:
    "What must hold for any model."
    chance = math.log(vocabulary)
    return Band([0, settled], [0., 0.], [chance*1.1 + .5, entropy*1.1 + .3],
                f'a guess among {vocabulary:,} tokens, and the entropy of the answers ({entropy:.2f})')

def expected(
    facts:Facts, # with stage, configuration, rows
)->Band|None: # None: nothing is known
    "The band of a run."
    if t := reference(facts.stage, facts.config, facts.lora): return reference_band(t)
    if facts.config is None or not facts.rows: return None
    return theory_band(facts.config.text_config.vocab_size, unigram_entropy(facts.rows), max(100, facts.planned//10))

RELEASE_RATES = {('pretrain', False):(4096, 1e-3), ('finetune', False):(4096, 2e-5),
                 ('finetune', True):(4096, 2e-4)} # (stage, adapters): (width, rate)

def usual_rate(
    stage:str, # name
    width:int, # of the language model
    lora:bool=False, # adapters?
)->float|None: # None for a stage of one's own
    "What healthy runs of that width used, or would have."
    if (stage, lora) not in RELEASE_RATES: return None
    known = dict([RELEASE_RATES[stage, lora], *((t['width'], t['rate']) for t in trajectories()
                                                if (t['stage'], t['lora']) == (stage, lora))])
    widths = sorted(known)
    return float(np.exp(np.interp(math.log(width), np.log(widths), np.log([known[w] for w in widths]))))

@probe('run')
def rate_unusual(
    facts:Facts, # with a log
    times:float=4., # how unusual
)->Finding|None:
    "A learning rate far from the usual one, with a loss that shows it."
    if facts.stage is None or facts.config is None or not (losses := smooth(facts.log)): return None
    rate, width = facts.stage.learning_rate, facts.config.text_config.hidden_size
    usual, band = usual_rate(facts.stage.name, width, facts.lora), expected(facts)
    if not usual or not band or losses[-1][0] < 20: return None
    said, since = dict(rate=rate, usual=usual), _above(losses, band)
    if rate >= times*usual and (why := _suffers(facts, losses, since)):
        return Finding('rate high', .8, since, dict(said, times=rate/usual, why=why))
    if rate*times <= usual and since is not None:
        return Finding('rate low', .8, since, dict(said, times=usual/rate, why='the loss falls too slowly'))

def smooth(
    log:list[dict], # lines with `loss`
    n:int=3, # lines to take the mean of
)->list[tuple[int,float]]: # (step, loss)
    "The losses of a log, less noisy."
    rows = [(r['step'], r['loss']) for r in log if 'loss' in r]
    return [(rows[k][0], float(np.mean([l for _,l in rows[max(0, k-n+1):k+1]]))) for k in range(len(rows))]

def _above(losses, band):
    "The first step from which on the loss is above the band, to the end; None: it is not at the end."
    ok = [k for k,(s,l) in enumerate(losses) if l <= band.at(s)[1]]
    rest = losses[ok[-1] + 1:] if ok else losses
    return rest[0][0] if rest else None

def _suffers(facts, losses, since):
    "How a run shows that its rate is too high; '' if it does not."
    if since is not None: return 'the loss lies above the expected band'
    low = min(l for _,l in losses)
    if losses[-1][1] > 1.5*low + .2: return f'the loss rises again, from {low:.2f} to {losses[-1][1]:.2f}'
    return _noisy(facts)

def _noisy(facts):
    "Is the gradient many times as large as that of healthy runs?"
    t = reference(facts.stage, facts.config, facts.lora)
    norms = [r['grad_norm'] for r in facts.log if 'grad_norm' in r][2:]
    if not t or not norms: return ''
    usual = float(np.max(t['grads']))
    return f'gradients reach {max(norms):.1f}, those of healthy runs {usual:.1f}' if max(norms) > 2*usual else ''

@probe('run')
def loss_unusual(
    facts:Facts, # with a log
)->Finding|None:
    "A loss that begins above chance, or stays above the band."
    losses, band = smooth(facts.log), expected(facts)
    if not losses or band is None: return None
    chance, (step, first) = math.log(facts.config.text_config.vocab_size), losses[0]
    if step <= 10 and first > 1.1*chance + .5:
        return Finding('loss start', .8, step, dict(loss=first, chance=chance))
    if losses[-1][0] < 40 or (since := _above(losses, band)) is None or len(losses) < 4: return None
    low, high = band.at(losses[-1][0])
    return Finding('loss high', .5, since, dict(loss=losses[-1][1], low=low, high=high))