"Pages with words of enemies in them: reports, comparisons, and the site; nothing runs, nothing is fetched."
import json

import pytest

from browsing import HOSTILE, browser_page, faults_of, inert, shot

pytestmark = pytest.mark.browser


def questions(folder):
    "Questions, categories and right answers of an enemy, with two runs that answer them."
    from aligngpt.core.files import write_json
    from aligngpt.evaluation.run import Run, score_run
    from aligngpt.evaluation.tasks import questions as read
    from aligngpt.model.toy import swatch
    swatch('red', 32).save(folder/'red.png')
    rows = [dict(question_id=f'{i} {t}', image='red.png', text=t, answer=t, category=t) for i,t in enumerate(HOSTILE)]
    (folder/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    asked, runs = read(folder/'q.jsonl', folder), []
    for name, said in (('<b onclick=1>one', lambda t: t), ('two', lambda t: 'x' + t)):
        place = folder/name.replace('/', '')/'q'
        place.mkdir(parents=True)
        (place/'answers.jsonl').write_text(''.join(json.dumps(q.row(said(t))) + '\n' for q,t in zip(asked, HOSTILE)))
        here = folder.absolute()
        write_json(dict(task='q', file=str(here/'q.jsonl'), data=str(here), model_id=name + HOSTILE[1],
                        questions=len(asked), prompts='p', processor='p', model='m' + name, config='c',
                        settings=dict(skipped=0, dtype=name)), place/'manifest.json')
        score_run(Run.finished(place))
        runs.append(place)
    return runs

def records(folder):
    "Records of an enemy, good and bad."
    rows = [dict(id=t, image=t, conversations=[{'from':'human', 'value':t}, {'from':t if i%2 else 'gpt', 'value':t}])
            for i,t in enumerate(HOSTILE)]
    rows.append(dict(id='fine', image='red.png',
                     conversations=[{'from':'human', 'value':'<image>'}, {'from':'gpt', 'value':'x'}]))
    (folder/'data.json').write_text(json.dumps(rows))
    return folder/'data.json'

def reports(folder):
    "The HTML pages that commands write."
    from aligngpt.data.audit import audit
    from aligngpt.evaluation.compare import compare, comparison_page
    from aligngpt.evaluation.pages import error_page
    from aligngpt.evaluation.run import Run
    one, two = questions(folder)
    audit(records(folder), folder, folder/'audit', workers=0, quiet=True)
    yield error_page(Run.finished(two))
    yield comparison_page(compare(one, two), folder/'compare.html')
    yield folder/'audit'/'report.html'

def shown(folder):
    "Everything that shows itself in a notebook and holds words of others."
    from aligngpt.chat.reader import Answer, Turn
    from aligngpt.chat.session import ChatSession
    from aligngpt.chat.widget import Chat
    from aligngpt.core.markup import Table
    from aligngpt.data.audit import audit
    from aligngpt.evaluation.compare import compare
    from aligngpt.evaluation.report import ScoreReport
    from aligngpt.model.toy import toy
    from aligngpt.text.conversation import render
    turns = [Turn(t, [], Answer(t, weights=[.1]*8, tokens=3)) for t in HOSTILE]
    session, chat = ChatSession(*toy()), Chat(*toy())
    session.turns = chat.session.turns = turns
    yield from (session, *[t.answer for t in turns], Table([(t, 1) for t in HOSTILE], ('words', 'of others')))
    yield from (render(m, 'v1') for m in ([dict(role='user', content=t), dict(role='assistant', content=t)]
                                          for t in HOSTILE))
    yield from compare(*questions(folder))
    yield audit(records(folder), folder, folder/'audit again', workers=0, quiet=True)
    yield ScoreReport('q', HOSTILE[0], HOSTILE[1], 1., {'by': {t: .5 for t in HOSTILE[:12]}}, notes=HOSTILE)
    yield chat._repr_html_()

def bundle(o):
    "What Jupyter stores of an output."
    kinds = {'text/html':'_repr_html_', 'text/markdown':'_repr_markdown_'}
    if isinstance(o, str): return {'text/html':o}
    return {k:f() for k,m in kinds.items() if (f := getattr(o, m, None)) and f() is not None} | {'text/plain':repr(o)}

def site(folder):
    "The site's page with these outputs, by the extensions of its settings."
    from markdown import markdown
    from aligngpt.book.docs import output_markdown
    text = '\n\n'.join(output_markdown(dict(output_type='execute_result', data=data), folder/'x')
                       for o in shown(folder) for data in (bundle(o), {'text/plain':repr(o)}))
    stream = output_markdown(dict(output_type='stream', text='\n'.join(HOSTILE)), folder/'x')
    return markdown(f'{text}\n\n{stream}', extensions=['admonition', 'attr_list', 'footnotes', 'md_in_html', 'tables',
                                                       'toc',
                    'pymdownx.arithmatex', 'pymdownx.details', 'pymdownx.highlight', 'pymdownx.superfences'])

def test_reports(tmp_path):
    "report.html of eval and audit, compare.html: without scripts, so each is looked at as it is."
    with browser_page('reports') as page:
        for path in reports(tmp_path):
            page.goto(path.as_uri())
            page.abroad.clear() # the file itself
            inert(page)
            assert 'onerror' in page.locator('body').inner_text(), f'{path.name} shows what was written'

@pytest.mark.slow
def test_everybody_can_read_reports(tmp_path):
    "In light and in dark axe finds nothing serious, and on a phone nothing is wider than the screen."
    with browser_page('readable') as page:
        for i, path in enumerate(reports(tmp_path)):
            page.goto(path.as_uri())
            for scheme in ('light', 'dark'):
                page.emulate_media(color_scheme=scheme)
                assert faults_of(page) == [], (path.name, scheme)
                page.set_viewport_size(dict(width=390, height=844))
                shot(page, f'report{i}_{scheme}_phone')
                assert page.evaluate('document.documentElement.scrollWidth') <= 390, path.name
                page.set_viewport_size(dict(width=1280, height=1000))
                shot(page, f'report{i}_{scheme}')

def test_site(tmp_path):
    pytest.importorskip('pymdownx', reason='no pymdownx: pip install mkdocs-material')
    (tmp_path/'site.html').write_text(f'<!doctype html><meta charset=utf-8><body>{site(tmp_path)}')
    with browser_page('site') as page:
        page.goto((tmp_path/'site.html').as_uri())
        page.abroad.clear()
        inert(page)
        assert 'onerror' in page.locator('body').inner_text()
