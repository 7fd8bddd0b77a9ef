import hashlib, re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aligngpt.core.errors import BadRecord
from aligngpt.text.conversation import TEMPLATES, record_images
from aligngpt.data.audit import sample_facts, text_notes
from aligngpt.data.records import Records
from aligngpt.training.signs import PROBES, Facts, Finding, ask_probes, probe

@dataclass
class DataFacts:
    "What is known of records."
    records:Records # all
    sample:list[dict] # some of them
    n_levels:int=8 # N
    processor:Any=None # to see them as tokens
    max_length:int=2048 # tokens of a sample

def some_rows(
    n:int, # records
    most:int=4000, # to read
    stretch:int=100, # neighbours at a time
)->np.ndarray: # ascending
    "Stretches spread over all records."
    if n <= most: return np.arange(n)
    starts = np.linspace(0, n - stretch, most//stretch).astype(int)
    return np.unique((starts[:, None] + np.arange(stretch)).ravel())

def read_data(
    records:Records, # all
    **known, # more fields of `DataFacts`
)->DataFacts:
    "Read some records."
    return DataFacts(records, [records[int(i)] for i in some_rows(len(records))], **known)

PROBES.setdefault('data', [])

def data_findings(
    records:Records, # what to look at
    **known, # more fields of `DataFacts`
)->list[Finding]:
    "What is odd about records."
    return ask_probes('data', read_data(records, **known)) if len(records) else []

def _text(record): return '\n'.join(t.get('value', '') for t in record.get('conversations', ()))

@probe('data')
def copies(
    facts:DataFacts, # with a sample
)->Finding|None:
    "Records that occur more than once: the same texts about the same pictures."
    keys = [hashlib.md5(repr((record_images(r), _text(r))).encode()).digest() for r in facts.sample]
    counts = Counter(keys)
    often = [k for k in keys if counts[k] > 1]
    if (share := len(often)/max(1, len(keys))) < .05: return None
    row = keys.index(counts.most_common(1)[0][0])
    name = facts.sample[row].get('id', f'number {row}')
    return Finding('duplicates', 1., None, dict(share=share, example=f'record {name!r}, {counts[keys[row]]} times'))

_MARKS = [re.escape(m.strip()) for t in TEMPLATES.values() for m in (t.before_user, t.before_answer)
          if m.strip() and '{' not in m] + [r'\[INST\]']

@probe('data')
def rendered_before(
    facts:DataFacts, # with a sample
)->Finding|None:
    "Texts that contain the marks of a template."
    found = [re.search('|'.join(_MARKS), text) for text in map(_text, facts.sample)]
    if (share := sum(map(bool, found))/max(1, len(found))) >= .05:
        return Finding('template twice', .95, None, dict(share=share, mark=next(filter(None, found))[0]))

@probe('data')
def control_tokens(
    facts:DataFacts, # with a sample
)->Finding|None:
    "Texts that contain what looks like a control token."
    odd = [r for r in facts.sample if 'special tokens' in text_notes(r)]
    if len(odd) < .02*len(facts.sample) or not odd: return None
    mark = re.search(r'<\|[a-z_]{2,30}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:unk|pad|bos|eos)>', _text(odd[0]))
    return Finding('special text', .95, None, dict(share=len(odd)/len(facts.sample), mark=mark[0]))

@probe('data')
def one_source(
    facts:DataFacts, # with the files
    most:float=.9, # share that one may have
)->Finding|None:
    "A file that has nearly all records."
    r = facts.records
    sizes = np.array([len(s)*w for s,w in zip(r.sources, r.weights)])
    if len(sizes) < 2 or sizes.max() < most*sizes.sum(): return None
    k, least = int(sizes.argmax()), np.sort(sizes)[-2]
    weights = ','.join(f'{w*(4*least/s if i == k else 1):.2g}' for i,(s,w) in enumerate(zip(sizes, r.weights)))
    return Finding('one source', 1., None, dict(share=sizes[k]/sizes.sum(), n=int(sizes.sum()),
                                                name=Path(r.sources[k].path).name, weights=weights))

@probe('data')
def level_counts(
    facts:DataFacts, # with levels
)->Finding|None:
    "Levels that are constant, or lack one end."
    from aligngpt.model.layers import AlignGPTConfig
    from aligngpt.training.signs import levels_counted
    levels = facts.records.column('level')
    counts = Counter(levels[levels >= 0].tolist())
    return levels_counted(Facts(config=AlignGPTConfig(num_levels=facts.n_levels), levels=counts))

@probe('data')
def cut_answers(
    facts:DataFacts, # with a processor
    most:int=100, # records to encode
)->Finding|None:
    "Answers that are beyond the maximum length."
    if facts.processor is None: return None
    lengths = [l for r in facts.sample[::max(1, len(facts.sample)//most)][:most] if (l := _lengths(facts, r))]
    if (share := sum(l['kept'] < l['learnt'] for l in lengths)/max(1, len(lengths))) < .05: return None
    better = 64*-(-max(l['length'] for l in lengths)//64)
    return Finding('answers cut', .9, None, dict(share=share, limit=facts.max_length, better=better))

def _lengths(facts, record):
    "Lengths of a record, or None if it is bad."
    try: return sample_facts(facts.processor, record, facts.max_length)
    except BadRecord: return None