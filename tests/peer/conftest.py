"Nothing is fetched, and none of these modules is looked at, unless the marker `peer` asks for it."
import pytest

from peer import suites


def pytest_ignore_collect(collection_path, config):
    asked = config.option.markexpr
    if asked and 'peer' not in asked.replace('not peer', ''): return True

def pytest_collect_file(file_path, parent):
    config = parent.config
    try: suites.prepare(config.cache.mkdir('peer'))
    except OSError as e: pytest.skip(f"the registry does not give transformers' tests: {e}", allow_module_level=True)
    for name in suites.marks(): config.addinivalue_line('markers', f"{name}: of transformers' suites")
