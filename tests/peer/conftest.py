"Nothing is fetched, and none of these modules is looked at, unless the marker `peer` asks for it."
from peer import suites


def pytest_ignore_collect(collection_path, config):
    asked = config.option.markexpr
    if asked and 'peer' not in asked.replace('not peer', ''): return True

def pytest_collect_file(file_path, parent):
    config = parent.config
    why = suites.prepare(config.cache.mkdir('peer'))
    for name in suites.marks() if not why else []: config.addinivalue_line('markers', f"{name}: of transformers' suites")
