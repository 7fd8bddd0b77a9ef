"A picture is the same tensor through every face of the project; benchmarks alone leave it as it is stored."
import base64, io, json

import numpy as np
import pytest
import torch
from PIL import Image

from aligngpt.serving.api import Api, create_app
from aligngpt.data.batches import SampleDataset
from aligngpt.serving.engine import Engine
from aligngpt.chat.session import ChatSession
from aligngpt.data.records import Records
from aligngpt.evaluation.questions import Question, load_image
from aligngpt.serving.page import keep_upload, Uploads
from aligngpt.core.pictures import open_picture
from aligngpt.serving.remote import Limits, safe_picture
from aligngpt.levels.scoring import PairBatches
from aligngpt.model.toy import toy


def deep():
    "A ramp of sixteen bits; Pillow's own conversion makes it white."
    return Image.fromarray(np.linspace(0, 65535, 40*24).astype('uint16').reshape(24, 40)), 'PNG', {}

def lying():
    "A photo that a camera took lying on its side."
    exif = Image.Exif(); exif[0x0112] = 6
    im = Image.new('RGB', (40, 24), 'white'); im.paste('red', (0, 0, 20, 24))
    return im, 'JPEG', dict(exif=exif, quality=95)

def clear():
    "Colours under a transparency."
    im = Image.new('RGBA', (40, 24), (250, 20, 20, 0)); im.paste((20, 20, 250, 255), (0, 0, 10, 24))
    return im, 'PNG', {}


@pytest.fixture(scope='module')
def talking(): return toy()

@pytest.fixture(params=[deep, lying, clear], ids=lambda f: f.__name__)
def file(request, tmp_path):
    im, kind, how = request.param()
    path = tmp_path/f'picture.{kind.lower()}'
    im.save(path, kind, **how)
    turns = [{'from': 'human', 'value': '<image>\nWhat colour is it?'}, {'from': 'gpt', 'value': 'red'}]
    (tmp_path/'data.json').write_text(json.dumps([dict(id=1, image=path.name, similarity=1, conversations=turns)]))
    return path

def shown(model, ask):
    "The pixels that the vision tower sees while `ask` runs."
    seen = []
    def look(module, args, kwargs): seen.append((args[0] if args else kwargs['pixel_values']).clone())
    hook = model.vision_tower.register_forward_pre_hook(look, with_kwargs=True)
    try: ask()
    finally: hook.remove()
    assert len(seen) == 1
    return seen[0]

def over_the_api(model, processor, data):
    "Ask about a picture in a data URL."
    from starlette.testclient import TestClient
    engine = Engine(model, processor, temperature=0)
    url = 'data:image/png;base64,' + base64.b64encode(data).decode()
    parts = [dict(type='image_url', image_url=dict(url=url)), dict(type='text', text='What colour is it?')]
    with TestClient(create_app(Api(engine, 'toy'))) as http:
        r = http.post('/v1/chat/completions', json=dict(model='toy', messages=[dict(role='user', content=parts)],
                                                        max_tokens=2))
        assert r.status_code == 200, r.text

def faces(file, model, processor):
    "What each way to the model makes of a file: (name, function)."
    data, folder = file.read_bytes(), file.parent
    records = Records(folder/'data.json', quiet=True)
    samples = SampleDataset(records, folder, processor)
    prepare = lambda im: processor.prepare_images([im])
    message = lambda source: [dict(role='user',
                                   content=[dict(type='image', **source), dict(type='text', text='What?')])]
    template = lambda source: processor.apply_chat_template(message(source), tokenize=True, return_dict=True,
                                                            return_tensors='pt', add_generation_prompt=True)
    class Scorer: pass
    uploads = type('', (), dict(folder=folder/'uploads', uploads=Uploads(), api=type('', (), dict(limits=Limits()))))
    chat = lambda source: ChatSession(model, processor, temperature=0,
                                      max_new_tokens=2).ask('What colour is it?', images=[source])
    return dict(
        training=lambda: samples[0]['pixel_values'],
        features=lambda: samples.pixels(samples.image_keys()),
        levels=lambda: prepare(PairBatches(records, folder, Scorer()).load(0)[0]),
        processor_path=lambda: processor(images=file)['pixel_values'],
        processor_pil=lambda: processor(images=Image.open(file))['pixel_values'],
        template_path=lambda: template(dict(path=str(file)))['pixel_values'],
        template_pil=lambda: template(dict(image=Image.open(file)))['pixel_values'],
        template_base64=lambda: template(dict(base64=base64.b64encode(data).decode()))['pixel_values'],
        chat_path=lambda: shown(model, lambda: chat(file)), chat_bytes=lambda: shown(model, lambda: chat(data)),
        chat_pil=lambda: shown(model, lambda: chat(Image.open(io.BytesIO(data)))),
        upload=lambda: prepare(safe_picture(keep_upload(data, uploads).read_bytes(), 'x')),
        api=lambda: shown(model, lambda: over_the_api(model, processor, data)))


def test_every_face_shows_the_same(file, talking):
    model, processor = talking
    want = processor.prepare_images([open_picture(file)])
    for name,face in faces(file, model, processor).items():
        assert torch.equal(torch.as_tensor(face()), want), name

def test_benchmarks_do_not_turn(file, talking):
    _, processor = talking
    stored = Image.open(file)
    if stored.mode.startswith('I'): stored = Image.fromarray((np.asarray(stored) >> 8).astype('uint8'))
    stored.getexif().clear(); stored.info.clear()
    want = processor.prepare_images([stored.convert('RGB')])
    inline = Question(1, '?', image_base64=base64.b64encode(file.read_bytes()).decode())
    for q in (Question(1, '?', image=file.name), inline):
        assert torch.equal(processor.prepare_images([load_image(q, file.parent)]), want)

def test_sixteen_bits_are_grey(tmp_path):
    im, kind, how = deep()
    im.save(tmp_path/'deep.png')
    for im in (open_picture(tmp_path/'deep.png'), load_image(Question(1, '?', image='deep.png'), tmp_path)):
        assert abs(np.asarray(im).mean() - 127) < 1
