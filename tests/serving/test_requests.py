"""Nothing that JSON can say is an internal error: requests of chance, over every field of the request models."""
import json, logging
from functools import lru_cache

import pytest

hypothesis = pytest.importorskip('hypothesis', reason="no hypothesis: pip install 'aligngpt[dev]'")
from hypothesis import given, settings, strategies as st
from starlette.testclient import TestClient
from aligngpt.model.toy import toy
from aligngpt.serving.api import Api, create_app
from aligngpt.serving.engine import Engine
from aligngpt.serving.requests import ChatRequest, field_table, ImageURL, Message, Part, ResponseRequest
from aligngpt.serving.responses import add_responses

logging.getLogger('aligngpt.serve').addHandler(logging.NullHandler())
PICTURE = ('data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC')


@lru_cache(1)
def client():
    "A server of the toy that answers quickly."
    engine = Engine(*toy(), max_new_tokens=2)
    return TestClient(add_responses(create_app(Api(engine, 'toy'))), raise_server_exceptions=False)


text = st.text(st.characters(exclude_categories=()),
               max_size=6) | st.sampled_from(['user', 'auto', 'none', 'text', 'toy', '1', PICTURE])
number = (st.integers(-3, 30) | st.integers() | st.sampled_from([10**30, -2**63, 2**63, 10**400]) | st.floats()
          | st.floats(0, 2))
values = st.recursive(st.none() | st.booleans() | number | text,
                      lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3), max_leaves=5)


def some(kind, fixed):
    "An object like `kind`: fixed fields, and a few of any that are known, with values of chance."
    names = [n for n,*_ in field_table(kind)] + ['unknown', '\ud800']
    few = st.dictionaries(st.sampled_from(names), values, max_size=2)
    return st.builds(lambda a, b: {**a, **b}, st.fixed_dictionaries(fixed), few)


url = some(ImageURL, dict(url=st.just(PICTURE) | text)) | st.just(PICTURE) | text
part = (some(Part, dict(type=st.just('text'), text=text)) | some(Part, dict(type=st.just('input_text'), text=text))
        | some(Part, dict(type=st.sampled_from(['image_url', 'input_image']), image_url=url)) | values)
content = text | st.lists(part, max_size=3) | values
message = some(Message, dict(role=st.sampled_from(['user', 'assistant', 'system', 'developer', 'tool']),
                             content=content))
talk = st.lists(message, min_size=1, max_size=4) | values
chat = some(ChatRequest, dict(model=st.just('toy'), messages=talk, max_tokens=st.just(2)))
response = some(ResponseRequest, dict(model=st.just('toy'), input=talk | text, max_output_tokens=st.just(2)))


def check(address, **kw):
    "Answered, or refused with a sentence."
    r = client().post(address, **{'headers':{'Content-Type':'application/json'}, **kw})
    assert r.status_code < 500, (kw, r.text)
    if r.status_code == 200: return r
    error = r.json()['error']
    assert error['message'] and error['type'] == 'invalid_request_error' and isinstance(error['param'], (str, type(None)))
    return r


@settings(max_examples=80, deadline=None, derandomize=True)
@given(chat)
def test_chat(body): check('/v1/chat/completions', content=json.dumps(body))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(response)
def test_responses(body): check('/v1/responses', content=json.dumps(body))


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(chat, response)
def test_many(one, other):
    check('/v1/chat/completions', content=json.dumps(one))
    check('/v1/responses', content=json.dumps(other))


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'"x"', b'null', b'NaN', b'1e999', b'\xff\xfe', b'[' * 100_000,
                                  b'{"a":' * 5_000, b'{"model":' + b'9' * 10_000 + b'}',
                                  '{"model":"é"}'.encode('utf-16'),
                                  b'\xef\xbb\xbf{}', b'{"model":"toy","messages":' + b'{"a":' * 900 + b'1'
                                  + b'}' * 901],
                         ids=lambda b: repr(b[:12]))
def test_no_request(body):
    for address in ('/v1/chat/completions', '/v1/responses'): assert check(address, content=body).status_code == 400


@pytest.mark.parametrize('nothing', [None, '', [], {}])
def test_nothing_is_not_there(nothing):
    "A field that is null or empty might as well be missing, whatever it is called."
    for kind, address, said in ((ChatRequest, '/v1/chat/completions', 'messages'),
                                (ResponseRequest, '/v1/responses', 'input')):
        fields = {n:nothing for n,*_ in field_table(kind)} | {'brand_new':nothing}
        body = fields | {'model':'toy', said:[dict.fromkeys([n for n,*_ in field_table(Message)], nothing)
                                              | dict(role='user', content='Hi')]}
        assert check(address, content=json.dumps(body)).status_code == 200
