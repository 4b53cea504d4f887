"""What the README tells users of a framework is what these tests run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from serving import APPS

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def snippets():
    section = README.split("## With your framework\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def home(snippet):
    """The applications that have each paragraph of it, word for word."""
    texts = {path.name: path.read_text("utf-8") for path in APPS.glob("*.py")}
    parts = snippet.strip("\n").split("\n\n\n")
    return [
        name
        for name, text in texts.items()
        if all(f"\n{part}\n" in f"\n{text}" for part in parts)
    ]


def test_the_snippets_are_run():
    assert [home(snippet) for snippet in snippets()] == [
        ["fastapi_async.py"],
        ["fastapi_sync.py"],
        ["flask_shop.py"],
        ["jobs.py"],
        ["gunicorn_conf.py"],
    ]


def test_the_files_in_yaml_can_be_read():
    """Pods, compose files and workflows are copied as they stand."""
    yaml = pytest.importorskip("yaml")
    blocks = re.findall(r"^```yaml\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        assert isinstance(yaml.safe_load(block), dict | list), block
