import math
from dataclasses import dataclass

import numpy as np, torch, torch.nn.functional as F

from aligngpt.core.errors import BadRecord
from aligngpt.model.layers import lm_head, targets
from aligngpt.data.batches import Collator, SampleDataset
from aligngpt.levels.plots import spearman
from aligngpt.training.signs import PROBES, Finding, probe

@dataclass
class Seen:
    "Samples with their own pictures and with others'."
    right:np.ndarray # losses with their own, [n]
    other:np.ndarray # losses with others', [n]
    levels:np.ndarray # of each sample; -1 for none, [n]
    spread:float=math.nan # of the image tokens over the pictures, as a share of their size
    steps:int=10**6 # of the run

    @property
    def gain(self)->np.ndarray: # [n] nats
        "What its own picture does for each sample."
        return self.other - self.right

@torch.no_grad()
def sample_losses(
    model:torch.nn.Module, # an AlignGPT
    batch:dict, # from a collator
)->tuple[torch.Tensor,torch.Tensor|None]: # (losses [n_samples], image tokens)
    "The loss of each sample of a batch."
    labels = batch['labels']
    keep, target = targets(labels)
    inputs = {k:v for k,v in batch.items() if k not in ('labels', 'label_weights')}
    out = model.model(**inputs, keep=keep)
    ce = F.cross_entropy(lm_head(model.language_model, out.last_hidden_state, model.lm_head).float(), target,
                         reduction='none')
    row, n = keep.nonzero()[:, 0], keep.sum(1)
    return torch.zeros(len(labels), device=ce.device).index_add(0, row, ce)/n.clamp(min=1), out.image_hidden_states

def look(
    model:torch.nn.Module, # an AlignGPT
    samples:list[dict], # encoded, each with one picture
    collate:Collator, # makes batches of them
    batch_size:int=16, # samples at a time
)->Seen:
    "Show samples with their own pictures and with others'."
    order = np.random.default_rng(0).permutation(len(samples)) # of the same kind, and not neighbours
    samples, was = [samples[i] for i in order], model.training
    model.eval()
    right, other, images = [], [], []
    try:
        for k in range(0, len(samples), batch_size):
            some = samples[k:k + batch_size]
            if len(some) < 2: break
            losses, image = sample_losses(model, _moved(collate(some), model))
            right.append(losses)
            images.append(image.flatten(1)[:8])
            other.append(sample_losses(model, _moved(collate(_exchanged(some)), model))[0])
    finally: model.train(was)
    return Seen(*(torch.cat(x).cpu().numpy() for x in (right, other)), _levels(samples, sum(map(len, right))),
                _spread(torch.cat(images)))

def _moved(batch, model): return {k:v.to(model.device) if torch.is_tensor(v) else v for k,v in batch.items()}
def _levels(samples, n): return np.array([int(s.get('alignment', -1)) for s in samples[:n]])
def _spread(x): return float(x.float().std(0).mean()/x.float().abs().mean().clamp(min=1e-12))

def _exchanged(samples):
    "The samples, each with its neighbour's picture."
    pictures = [{k:s[k] for k in ('pixel_values', 'images') if k in s} for s in samples]
    return [{**s, **p} for s,p in zip(samples, pictures[1:] + pictures[:1])]

PROBES.setdefault('look', [])

@probe('look')
def unused(
    seen:Seen, # samples
    least:float=.02, # of the loss
)->Finding|None:
    "A picture that does nothing for the text."
    if len(seen.gain) < 16 or seen.steps < 60: return None # too few samples, or too early
    mean, error, loss = seen.gain.mean(), seen.gain.std()/math.sqrt(len(seen.gain)), seen.right.mean()
    if mean + 2*error < least*loss or mean < error and mean < least*loss:
        return Finding('picture unused', .85, None, dict(gain=float(mean/loss)))

@probe('look')
def dead(
    seen:Seen, # samples
)->Finding|None:
    "A projector that gives the same for all pictures."
    if seen.spread < 1e-3: return Finding('projector dead', .95, None, dict(spread=seen.spread))

@probe('look')
def levels_rank(
    seen:Seen, # samples with levels
    least:int=96, # samples
)->Finding|None:
    "Levels that do not rank as the gains do."
    some = seen.levels >= 0
    levels, gain = seen.levels[some], seen.gain[some]
    if len(levels) < least or len(set(levels.tolist())) < 3: return None
    if gain.mean() < 2*gain.std()/math.sqrt(len(gain)): return None # pictures say too little
    n = int(levels.max()) + 1
    rho = {k:spearman((levels - k) % n, gain) for k in range(n)}
    best, noise = max(rho, key=rho.get), 1/math.sqrt(len(levels))
    if rho[0] > max(.1, 1.5*noise): return None
    facts = dict(rho=float(rho[0]), n=len(levels), top=n - 1)
    if rho[0] < -max(.2, 3*noise) and -rho[0] > rho[best] - .1: return Finding('levels inverted', .9, None, facts)
    if rho[best] > max(.25, 4*noise):
        why = f'counted from {best} on, they rank as the pictures say ({rho[best]:+.2f}; as they are {rho[0]:+.2f})'
        return Finding('levels shifted', .8, None, dict(top=n-1, why=why))
    return Finding('levels random', .7, None, facts)

def some_samples(
    data:SampleDataset, # of the run
    most:int=64, # samples
)->list[dict]: # encoded, each with one picture
    "Samples spread over the data."
    rows, found = np.linspace(0, len(data) - 1, min(len(data), 4*most)).astype(int), []
    for i in dict.fromkeys(rows.tolist()):
        if len(found) == most: break
        try: s = data.encode(int(data.rows[i]))
        except BadRecord: continue
        if len(s.get('images', ())) == 1: found.append(s)
    return found