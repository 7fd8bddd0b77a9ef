"The table of levels on the first page is what the page beside it has recorded."
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]

def test_first_page():
    text = (ROOT/'docs_src'/'live'/'recorded.js').read_text(encoding='utf-8')
    told = json.loads(text.removeprefix('const RECORDED = ').rstrip(';\n'))
    home = (ROOT/'README.md').read_text(encoding='utf-8')
    for name, k in {**{f'level {k}':k for k in (0, 4, 7)}, 'its gate':told['levels']}.items():
        said = [told['answers'][f'{i}|0']['said'][k] for i in range(3)]
        assert f"| **{name}** | {' | '.join(said)} |" in home
