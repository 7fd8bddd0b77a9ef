"""Several turns through each of the heavy clients, whole and streamed, with a picture: run by `test_clients.py` in an
environment of their own. Prints a JSON object: client -> what it was told."""
import asyncio, json, sys

URL, BLUE, RED = sys.argv[1:4]
COLOUR, COUNT = 'What colour is it?', 'Count to ten.'


def parts(url): return [dict(type='image_url', image_url=dict(url=url)), dict(type='text', text=COLOUR)]


def langchain(**how):
    "ChatOpenAI: invoke, stream, and the answer as history."
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI
    chat = ChatOpenAI(model='toy', base_url=URL, api_key='none', temperature=0, max_retries=0, **how)
    talk, told = [SystemMessage('Be brief.'), AIMessage('Hello!'), HumanMessage(parts(BLUE))], []
    for question in (COUNT, parts(RED), None):
        answer = chat.invoke(talk)
        told.append(answer.text)
        talk += [answer, HumanMessage(question)] if question else []
    told.append(''.join(m.text for m in chat.stream(talk)))
    return told


def litellm():
    "completion: whole, streamed, with the message object as history."
    import litellm as lite
    how = dict(model='openai/toy', api_base=URL, api_key='none', temperature=0, num_retries=0)
    talk, told = [dict(role='user', content=parts(BLUE))], []
    for question in (COUNT, parts(RED), None):
        answer = lite.completion(messages=talk, **how).choices[0].message
        told.append(answer.content)
        talk += [answer if question == COUNT else answer.model_dump(),
                 dict(role='user', content=question)] if question else []
    told.append(''.join(c.choices[0].delta.content or '' for c in lite.completion(messages=talk, stream=True, **how)))
    return told


def litellm_responses():
    "responses: the output items as input."
    import litellm as lite
    how = dict(model='openai/toy', api_base=URL, api_key='none', temperature=0)
    def shown(url): return [dict(type='input_image', image_url=url), dict(type='input_text', text=COLOUR)]
    talk, told = [dict(role='user', content=shown(BLUE))], []
    for question in (COUNT, shown(RED), None):
        answer = lite.responses(input=talk, **how)
        told.append(answer.output[0].content[0].text)
        talk += [*(o.model_dump() for o in answer.output), dict(role='user', content=question)] if question else []
    told.append(''.join(e.delta for e in lite.responses(input=talk, stream=True, **how)
                        if e.type == 'response.output_text.delta'))
    return told


def llama_index():
    "OpenAILike: chat, stream_chat, and asynchronously."
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai_like import OpenAILike
    llm = OpenAILike(model='toy', api_base=URL, api_key='none', is_chat_model=True, temperature=0, max_retries=0)
    def shown(url): return ChatMessage(role='user', blocks=[ImageBlock(url=url), TextBlock(text=COLOUR)])
    talk, told = [ChatMessage(role='assistant', content='Hello!'), shown(BLUE)], []
    for question in (ChatMessage(role='user', content=COUNT), shown(RED), None):
        answer = llm.chat(talk).message
        told.append(answer.content)
        talk += [answer, question] if question else []
    told.append(list(llm.stream_chat(talk))[-1].message.content)
    assert asyncio.run(llm.achat(talk)).message.content == told[-1]
    return told


def openai_old():
    "The release of the official client that these environments hold."
    import openai
    client = openai.OpenAI(base_url=URL, api_key='none', max_retries=0)
    talk, told = [dict(role='user', content=parts(BLUE))], []
    for question in (COUNT, parts(RED), None):
        answer = client.chat.completions.create(model='toy', messages=talk, temperature=0).choices[0].message
        told.append(answer.content)
        talk += [answer.model_dump(), dict(role='user', content=question)] if question else []
    with client.responses.stream(model='toy', input=[dict(role='user', content=COUNT)], temperature=0) as stream:
        told.append(stream.get_final_response().output_text)
    return told


def langchain_more():
    "Two questions in a row; two answers, an end, log probabilities, and the numbers of tokens of a stream."
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI
    def chat(**how): return ChatOpenAI(model='toy', base_url=URL, api_key='none', temperature=0, max_retries=0, **how)
    two = [HumanMessage('Hello.'), HumanMessage(parts(BLUE))]
    answers = [g.text for g in chat(n=2).generate([two]).generations[0]]
    likely = chat(logprobs=True, top_logprobs=2).invoke(two).response_metadata['logprobs']['content']
    usage = [c.usage_metadata for c in chat(stream_usage=True).stream(two) if c.usage_metadata][-1]
    return more(answers, chat().bind(stop=['blue']).invoke(two).text, likely, usage['total_tokens'])


def more(answers, cut, likely, tokens):
    "Two answers, a cut one, the text of the log probabilities, and is the number of tokens there?"
    return [*answers, cut, ''.join(t['token'] for t in likely).strip(), tokens > 0]


def litellm_more():
    "The same."
    import litellm as lite
    how = dict(model='openai/toy', api_base=URL, api_key='none', temperature=0, num_retries=0,
               messages=[dict(role='user', content='Hello.'), dict(role='user', content=parts(BLUE))])
    answers = [c.message.content for c in lite.completion(n=2, **how).choices]
    likely = lite.completion(logprobs=True, top_logprobs=2, **how).choices[0].logprobs.model_dump()['content']
    chunks = list(lite.completion(stream=True, stream_options=dict(include_usage=True), **how))
    return more(answers, lite.completion(stop=['blue'], **how).choices[0].message.content, likely,
                chunks[-1].usage.total_tokens)


def llama_index_more():
    "The same."
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
    from llama_index.llms.openai_like import OpenAILike
    def llm(**how): return OpenAILike(model='toy', api_base=URL, api_key='none', is_chat_model=True, temperature=0,
                                      max_retries=0, **how)
    two = [ChatMessage(role='user', content='Hello.'),
           ChatMessage(role='user', blocks=[ImageBlock(url=BLUE), TextBlock(text=COLOUR)])]
    raw = llm(additional_kwargs=dict(n=2, logprobs=True, top_logprobs=2)).chat(two).raw
    last = list(llm(additional_kwargs=dict(stream_options=dict(include_usage=True))).stream_chat(two))[-1]
    return more([c.message.content for c in raw.choices],
                llm(additional_kwargs=dict(stop=['blue'])).chat(two).message.content,
                raw.choices[0].logprobs.model_dump()['content'], last.raw.usage.total_tokens)


TALKS = dict(langchain=langchain, langchain_responses=lambda: langchain(use_responses_api=True), litellm=litellm,
             litellm_responses=litellm_responses, llama_index=llama_index, openai_old=openai_old,
             langchain_more=langchain_more, litellm_more=litellm_more, llama_index_more=llama_index_more)

if __name__ == '__main__':
    told = {}
    for name,talk in TALKS.items():
        try: told[name] = talk()
        except Exception as e: told[name] = f'{type(e).__name__}: {e}'
    print(json.dumps(told))
