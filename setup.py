"""Installation: everything that varies is in settings.ini, which nbdev reads as well."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters="=")
ini.read(here/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
suffix = "_requirements"
extras = {k[:-len(suffix)]: cfg[k].split() for k in cfg if k.endswith(suffix)}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    url=cfg["git_url"], author=cfg["author"], author_email=cfg["author_email"], license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"],
                           exclude=[cfg["lib_path"] + ".testing*"]), include_package_data=True,
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["aligngpt=aligngpt._modidx:d"],
                  "vllm.general_plugins": ["aligngpt=aligngpt.serving.vllm_plugin:register"],
                  "lmms_eval.models": ["aligngpt=aligngpt.evaluation.lmms_eval:lmms_manifest"]},
)
