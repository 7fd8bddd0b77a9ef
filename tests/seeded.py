"""A reference folder made from a seed: the release's method once more, in plain torch, one row at a time, and its
numbers in the reference's layout.

Other sizes than a real reference has (grouped-query attention, another tower, image size, feature layer, number
of levels, gate width),
and none of the package's model code. `make_reference(folder)` writes what `test_parity_reference.py` reads.
"""
import io, json, random
from types import SimpleNamespace

import numpy as np
import torch, torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

IMAGE = '<image>'
V1 = ('A chat between a curious user and an artificial intelligence assistant. '
      "The assistant gives helpful, detailed, and polite answers to the user's questions.")
LLAVA_LLAMA_2 = ('You are a helpful language and vision assistant. '
                 'You are able to understand the visual content that the user provides, '
                 'and assist the user with a variety of tasks using natural language.')


# Text: the reference's rules, told in another way than the package's.

def small_tokenizer(folder):
    "A small sentencepiece model of LLaMA's kind in `folder`; returns the sentencepiece library's own tokenizer."
    import sentencepiece
    from transformers.convert_slow_tokenizer import SentencePieceExtractor
    rng, out = random.Random(0), io.BytesIO()
    words = ('the a cat dog bus red blue on in what colour answer question picture shows two and of street, '
             '10 42 yes. no! USER: ASSISTANT: [INST] [/INST]').split()
    lines = [('  ' if i%9 == 0 else ' ').join(rng.choices(words, k=rng.randint(2, 12))) for i in range(400)]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=out, vocab_size=430,
                                             model_type='bpe', byte_fallback=True, minloglevel=2,
        normalization_rule_name='identity', remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        split_digits=True)
    (folder/'tokenizer.model').write_bytes(out.getvalue())
    proto = SentencePieceExtractor(str(folder/'tokenizer.model')).proto
    for piece in proto.pieces:
        if set(piece.piece) == {'▁'}: piece.score = -1e9
    (folder/'tokenizer.model').write_bytes(proto.SerializeToString())
    (folder/'tokenizer_config.json').write_text(json.dumps(dict(tokenizer_class='LlamaTokenizer', legacy=True,
        bos_token='<s>', eos_token='</s>', unk_token='<unk>')))
    return sentencepiece.SentencePieceProcessor(str(folder/'tokenizer.model'))

class ByRounds:
    "Tokenize the chunks of the finished string, then mask round by round by counting tokens."
    def __init__(self, sp): self.sp = sp

    def legacy(self, text):
        "Control strings are tokens, the text on each side of them is a text of its own."
        ids = []
        for i,part in enumerate(text.split('</s>')):
            if i: ids.append(2)
            for j,piece in enumerate(part.split('<s>')):
                if j: ids.append(1)
                if piece: ids += self.sp.encode(piece)
        return ids

    def ids(self, text):
        "A first token, and -200 between the chunks around pictures."
        out = [1]
        for i,chunk in enumerate(text.split(IMAGE)): out += [-200]*(i > 0) + self.legacy(chunk)
        return out

    def v1_text(self, turns):
        return V1 + ' ' + ''.join(f'USER: {t}' + ' ' if i%2 == 0 else f'ASSISTANT: {t}</s>'
                                  for i,t in enumerate(turns))

    def v1(self, turns): return self.by_rounds(self.v1_text(turns), ' ASSISTANT: ')

    def llava_llama_2(self, turns):
        system = f'<<SYS>>\n{LLAVA_LLAMA_2}\n<</SYS>>\n\n'
        text = ''.join(f'<s>[INST] {system*(i == 0)}{t} [/INST]' if i%2 == 0 else f' {t} </s>'
                       for i,t in enumerate(turns))[len('<s>'):]
        return self.by_rounds(text, '[/INST] ')

    def plain(self, turns):
        ids = self.ids(IMAGE + turns[1] + '\n')
        return ids, [-100, -100] + ids[2:]

    def by_rounds(self, text, sep):
        ids = self.ids(text)
        labels, at = [-100] + ids[1:], 1
        for piece in text.split('</s>'):
            if not piece: break
            head = len(self.ids(piece.split(sep)[0] + sep)) - 2
            labels[at:at+head] = [-100]*head
            at += len(self.ids(piece))
        assert at == len(ids)
        return ids, labels


# Pictures.

def by_hand(image, ip, pad):
    "The reference's preparation of a picture, written out with PIL and NumPy."
    w, h = image.size
    mean = np.array(ip.image_mean)
    if pad and w != h:
        square = Image.new('RGB', (max(w, h),)*2, tuple(int(x*255) for x in mean))
        square.paste(image, (0, (w-h)//2) if w > h else ((h-w)//2, 0))
        image, (w, h) = square, square.size
    side = ip.crop_size['height']
    new = (side, int(side*h/w)) if w < h else (int(side*w/h), side)
    image = image.resize(new, Image.Resampling(ip.resample))
    left, top = (new[0]-side)//2, (new[1]-side)//2
    x = np.asarray(image.crop((left, top, left+side, top+side)), dtype=np.float64)/255
    return ((x - mean)/np.array(ip.image_std)).transpose(2, 0, 1)


# The method.

SIDE, PATCH, LAYER, LEVELS, GATE = 28, 7, -3, 6, 24
N = (SIDE//PATCH)**2
IP = dict(image_processor_type='CLIPImageProcessor', feature_extractor_type='CLIPFeatureExtractor', size=SIDE,
          crop_size=SIDE, do_resize=True, do_center_crop=True, do_normalize=True, do_convert_rgb=True,
          resample=3, image_mean=[.48145466, .4578275, .40821073], image_std=[.26862954, .26130258, .27577711])
FLAT = dict(vocab_size=448, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=1024,
            rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_act='silu',
            initializer_range=.08, rope_scaling=None, tie_word_embeddings=False)
ALIGNED = {**FLAT, **dict(architectures=['AlignGPTForCausalLM'], model_type='aligngpt',
                          _name_or_path='lmsys/vicuna-7b-v1.5', mm_vision_tower='../clip', mm_hidden_size=24,
           mm_vision_select_layer=LAYER, mm_vision_select_feature='patch', mm_projector_type='mlp2x_gelu',
           mm_use_im_start_end=False, mm_use_im_patch_token=False, tokenizer_model_max_length=1024)}

def human(text): return {'from':'human', 'value':text}
def gpt(text): return {'from':'gpt', 'value':text}

PRETRAIN = [dict(id=str(i), image=f'{i}.png', similarity=level,
                 conversations=[human(f'{IMAGE}\nDescribe.'), gpt(text)])
            for i,(level,text) in enumerate([(1, 'a red bus on the street'), (5, 'two cat'),
                                             (0, 'the  dog and a picture , 42'), (1, 'ünï 東京')])]
FINETUNE = [dict(id='a', image='0.png', conversations=[human(f'{IMAGE}\nwhat colour?'), gpt('red'),
                                                       human('and the dog?'), gpt('a blue dog.')]),
            dict(id='b', conversations=[human('10 and 42?'), gpt('yes')]),
            dict(id='c', image='2.png', conversations=[human(f'what picture shows the cat?\n{IMAGE}'),
                                                       gpt('two cat on the street, no  dog')]),
            dict(id='d', conversations=[human('the bus?'), gpt('no!'), human('a  cat?'), gpt('yes.')]),
            dict(id='e', image='3.png', conversations=[human(f'{IMAGE}\n東京 in the picture?'),
                                                       gpt('the answer of the question')])]
ASK = [('1.png', [('user', 'what colour the bus?')]), (None, [('user', 'two and two?')]),
       ('3.png', [('user', 'the picture shows a cat?'), ('assistant', 'yes.'), ('user', 'and a dog?')])]

class Plain(nn.Module):
    "Tower, projector, levels, gate and language model, without batches, masks or a cache of our own."
    def __init__(self):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
        self.tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=4,
                                                      num_attention_heads=3, image_size=SIDE, patch_size=PATCH,
                                                      initializer_factor=3.)).eval()
        self.llm = LlamaForCausalLM(LlamaConfig(**FLAT, attn_implementation='eager'))
        self.mm_projector = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 40))
        self.align_indicators = nn.ParameterDict(dict(indicator_embs=nn.init.xavier_uniform_(torch.empty(LEVELS, 40))))
        self.gated_weight_layer = nn.ModuleDict(dict(mlp=nn.Sequential(nn.Linear(N, GATE), nn.GELU(),
            nn.Linear(GATE, LEVELS-1))))

    def look(self, pixels):
        with torch.no_grad(): V = self.tower(pixels[None], output_hidden_states=True).hidden_states[LAYER][0, 1:]
        return self.mm_projector(V)

    def row(self, ids, pixels=None, level=None):
        "(embeddings [length, H], α or None) of one row; -200 stands for the picture."
        E, L = self.llm.get_input_embeddings(), self.align_indicators['indicator_embs']
        if -200 not in ids: return E(torch.tensor(ids)), None
        at, I, alpha = ids.index(-200), self.look(pixels), None
        before, after = E(torch.tensor(ids[1:at])) if at > 1 else torch.empty(0, L.shape[1]), E(torch.tensor(ids[at+1:]))
        if level is not None: align = L[level]
        else:
            alpha = self.gated_weight_layer['mlp'](I @ torch.cat([before, after]).mean(0)).softmax(-1)
            align = L[-1] + alpha @ L[:-1]
        return torch.cat([E(torch.tensor(ids[:1])), align[None], before, I, after]), alpha

    def batch(self, rows, pixels, levels=None):
        "(loss, logits, α) of right-padded rows; rows with pictures first, as the reference has them."
        made = [self.row(ids, x, None if levels is None else levels[i])
                for i,((ids, _), x) in enumerate(zip(rows, pixels))]
        embeds = nn.utils.rnn.pad_sequence([e for e,_ in made], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(e)) for e,_ in made], batch_first=True)
        labels = nn.utils.rnn.pad_sequence([torch.tensor(wide(l, ids)) for ids,l in rows], batch_first=True,
                                           padding_value=-100)
        logits = self.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1),
                               labels[:, 1:].flatten()), logits, [a for _,a in made if a is not None]

    def parts(self, *names): return {k:v.detach().clone() for k,v in self.state_dict().items() if k.startswith(names)}

def wide(labels, ids):
    "Labels with -100 for ALIGN and for each image position."
    if -200 not in ids: return labels
    at = ids.index(-200)
    return labels[:1] + [-100] + labels[1:at] + [-100]*N + labels[at+1:]

def norm(params): return torch.stack([p.grad.norm() for p in params]).norm().item()

def learn(model, batch, params, lr, n):
    opt, losses = torch.optim.AdamW(params, lr=lr, weight_decay=0.), []
    for _ in range(n):
        loss = batch()[0]
        opt.zero_grad(); loss.backward(); opt.step(); losses.append(loss.item())
    return losses

def padded(rows, value): return [r + [value]*(max(map(len, rows)) - len(r)) for r in rows]


def make_reference(folder, seed=0):
    "Write a whole reference folder."
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    try: return _make(folder, Plain())
    finally: torch.use_deterministic_algorithms(False)

def _make(folder, m):
    for d in ('llm', 'clip', 'images', 'pretrain_out', 'aligngpt-seeded'): (folder/d).mkdir(parents=True)
    text = ByRounds(small_tokenizer(folder/'llm'))
    rng = np.random.default_rng(0)
    pictures = {f'{i}.png':Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
                for i,(h,w) in enumerate([(40,40), (21,60), (70,33), (28,29)])}
    for n,im in pictures.items(): im.save(folder/'images'/n)
    def pixels(name, pad):
        return None if name is None else torch.tensor(by_hand(pictures[name],
            SimpleNamespace(**{**IP, 'crop_size':dict(height=SIDE)}), pad), dtype=torch.float32)
    def turns(r):
        return [f'{IMAGE}\n' + t['value'].replace(IMAGE, '').strip() if IMAGE in t['value'] else t['value']
                for t in r['conversations']]
    _write_base(folder, m)
    expected = dict(pretrain=_pretrain(folder, m, text, pixels, turns),
                    finetune=_finetune(folder, m, text, pixels, turns), inference=_inference(m, text, pixels))
    tensors = {f'{stage}.{k}':v.detach().clone().contiguous() for stage in ('pretrain', 'finetune')
               for k,v in expected[stage].pop('tensors').items()}
    (folder/'expected.json').write_text(json.dumps(expected))
    save_file(tensors, folder/'expected.safetensors')
    return folder

def _write_base(folder, m):
    torch.save(m.llm.state_dict(), folder/'llm'/'pytorch_model.bin')
    (folder/'llm'/'config.json').write_text(json.dumps(dict(FLAT, architectures=['LlamaForCausalLM'],
                                                            model_type='llama')))
    torch.save({k if k.startswith('vision_model.') else f'vision_model.{k}':v
                for k,v in m.tower.state_dict().items()}, folder/'clip'/'pytorch_model.bin')
    c = m.tower.config
    (folder/'clip'/'config.json').write_text(json.dumps({k:getattr(c, k)
                                                         for k in ('model_type', 'hidden_size', 'intermediate_size',
        'num_hidden_layers', 'num_attention_heads', 'image_size', 'patch_size', 'projection_dim', 'hidden_act',
        'layer_norm_eps')}))
    (folder/'clip'/'preprocessor_config.json').write_text(json.dumps(IP))
    for name,data in (('pretrain', PRETRAIN), ('finetune', FINETUNE)):
        (folder/f'{name}.json').write_text(json.dumps(data))

def _pretrain(folder, m, text, pixels, turns):
    rows, levels = [text.plain(turns(r)) for r in PRETRAIN], [r['similarity'] for r in PRETRAIN]
    px = [pixels(r['image'], False) for r in PRETRAIN]
    torch.save(m.parts('mm_projector', 'align_indicators'), folder/'pretrain_init_mm_projector_align.bin')
    m.requires_grad_(False)
    trained = [*m.mm_projector.parameters(), *m.align_indicators.parameters()]
    for p in trained: p.requires_grad_(True)
    batch = lambda: m.batch(rows, px, levels)
    loss, logits, _ = batch()
    loss.backward()
    out = dict(loss=loss.item(), logits_shape=list(logits.shape),
               projector_grad_norm=norm(m.mm_projector.parameters()),
               indicator_grad_norm=norm(m.align_indicators.parameters()),
               input_ids=padded([r[0] for r in rows], 0), labels=padded([r[1] for r in rows], -100), align_ids=levels,
               tensors=dict(logits_pos1=logits[:, 1], logits_last=logits[:, -1], logits_caption=logits[:, N+2:, :300],
                            image_features=torch.stack([m.look(x) for x in px])[:, ::37]))
    out['adamw_lr1e-3_losses'] = learn(m, batch, trained, 1e-3, 3)
    torch.save(m.parts('mm_projector', 'align_indicators'), folder/'pretrain_out'/'mm_projector_align.bin')
    (folder/'pretrain_out'/'config.json').write_text(json.dumps(dict(ALIGNED, image_aspect_ratio='square',
        architectures=['LlamaForCausalLM'])))
    return out

def _finetune(folder, m, text, pixels, turns):
    order = sorted(range(len(FINETUNE)), key=lambda i: 'image' not in FINETUNE[i])
    rows = [text.v1(turns(r)) for r in FINETUNE]
    px = [pixels(r.get('image'), True) for r in FINETUNE]
    m.zero_grad()
    torch.save(m.parts('gated_weight_layer'), folder/'finetune_init_gate.bin')
    m.requires_grad_(False)
    named = {k.removeprefix('llm.'):p for k,p in m.named_parameters()
             if k.startswith(('llm.', 'mm_projector', 'gated_weight'))}
    for p in named.values(): p.requires_grad_(True)
    batch = lambda: m.batch([rows[i] for i in order], [px[i] for i in order])
    loss, logits, alphas = batch()
    loss.backward()
    length = {i:len(wide(rows[i][1], rows[i][0])) for i in order}
    watched = [k for k in named if k.startswith(('mm_projector', 'gated_weight', 'model.embed_tokens',
                                                 'model.layers.1.self_attn.k_proj', 'lm_head'))]
    out = dict(loss=loss.item(), logits_shape=list(logits.shape), gate_scores=torch.stack(alphas).tolist(),
               grad_norms={k:norm([named[k]]) for k in watched}, order=order,
               input_ids=padded([r[0] for r in rows], 0), labels=padded([r[1] for r in rows], -100),
               sequence_lengths=length,
               tensors=dict(logits_pos1=logits[:, 1], **{f'logits_final_{i}':logits[n, length[i]-1]
                                                         for n,i in enumerate(order)}))
    out['adamw_lr2e-5_losses'] = learn(m, batch, named.values(), 2e-5, 3)
    out['then_adamw_lr3e-3_losses'] = learn(m, batch, named.values(), 3e-3, 12)
    final = folder/'aligngpt-seeded'
    whole = {k.removeprefix('llm.'):v for k,v in m.parts('llm.', 'mm_projector', 'align_indicators',
                                                         'gated_weight').items()}
    inside = {f"vision_tower.vision_tower.vision_model.{k.removeprefix('vision_model.')}":v
              for k,v in m.tower.state_dict().items()}
    torch.save({**whole, **inside}, final/'pytorch_model.bin')
    (final/'config.json').write_text(json.dumps(dict(ALIGNED, image_aspect_ratio='pad')))
    for f in ('tokenizer.model', 'tokenizer_config.json'): (final/f).write_bytes((folder/'llm'/f).read_bytes())
    return out

@torch.no_grad()
def _inference(m, text, pixels, n=16):
    out = []
    for image,said in ASK:
        turns = [t for _,t in said]
        if image: turns[0] = f'{IMAGE}\n{turns[0]}'
        prompt = text.v1_text(turns).rstrip(' ') + ' ASSISTANT:'
        ids = text.ids(prompt)
        embeds, alpha = m.row(ids, pixels(image, True))
        made = []
        for _ in range(n):
            logits = m.llm(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
            logits[2] = -float('inf')
            made.append(logits.argmax().item())
            embeds = torch.cat([embeds, m.llm.get_input_embeddings()(torch.tensor(made[-1:]))])
        out.append(dict(turns=[list(t) for t in said], prompt=prompt, input_ids=ids, generated=made,
                        **(dict(image=image, gate=[alpha.tolist()]) if image else {})))
    return out
