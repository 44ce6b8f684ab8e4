"""The pages run, print what they say, and make the pictures that are committed."""

import importlib
import re
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
POINT = 0.01  # other processors round the last digits of a coordinate differently
PAGES = (
    pytest.param("math", marks=pytest.mark.slow),
    pytest.param("surprise", marks=pytest.mark.slow),
    pytest.param("estimating_kl", marks=pytest.mark.slow),
    "forward_and_reverse",
    pytest.param("fitting", marks=pytest.mark.slow),
    pytest.param("coming_from", marks=[pytest.mark.slow, pytest.mark.integration]),
    pytest.param("token_kl", marks=pytest.mark.slow),
    pytest.param("policy_kl", marks=pytest.mark.slow),
    pytest.param("audit", marks=pytest.mark.slow),
    pytest.param("logprobs", marks=pytest.mark.slow),
    "drift",
)
NEEDS = {"surprise": ("constriction",), "coming_from": ("numpyro", "pyro", "pymc", "httpstan")}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.fixture
def pictures(monkeypatch):
    """tools/docs_pictures.py; one thread, since the tables are small."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "docs_pictures", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield importlib.import_module("docs_pictures")
    torch.set_num_threads(threads)


def coordinates(element):
    placed = (element.get(name, "") for name in ("d", "points", "transform", "x", "y"))
    return [float(number) for text in placed for number in NUMBER.findall(text)]


def assert_same_picture(made, committed):
    """The same elements in the same order, the same words, every coordinate within POINT."""
    pair = (ElementTree.parse(path).getroot().iter() for path in (made, committed))
    for here, there in zip_longest(*pair):
        assert here is not None and there is not None, f"{made.name}: more or fewer elements"
        assert (here.tag, (here.text or "").strip()) == (there.tag, (there.text or "").strip())
        assert coordinates(here) == pytest.approx(coordinates(there), rel=0, abs=POINT)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, pictures, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own imports
        for package in NEEDS.get(page, ()):
            pytest.importorskip(package)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path)
    for block, printed in pictures.run(page):
        assert printed == block.said, f"{page}.md:{block.line}"
    text = (DOCS / f"{page}.md").read_text()
    shown = sorted(re.findall(r"\]\(img/(\w+\.svg)\)", text))
    assert shown == sorted(path.name for path in tmp_path.glob("*.svg"))
    for name in shown:
        assert_same_picture(tmp_path / name, DOCS / "img" / name)


def test_every_fence_of_the_pages_is_read(pictures):
    for page in pictures.PAGES:
        text, blocks = (DOCS / f"{page}.md").read_text(), pictures.blocks(page)
        assert text.count("```python\n") == len(blocks) > 5
        assert text.count("```text\n") == sum(bool(block.said) for block in blocks) >= 3


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    index = (DOCS / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index
        for link in re.findall(r"\]\(([\w/.]+)\)", path.read_text()):
            assert (DOCS / link).exists(), f"{path.name}: {link}"


CITED = re.compile(r"MATH (\d(?:\.\d)?(?:(?:, | and | to )\d\.\d)*)")


def test_every_citation_of_the_mathematics_resolves():
    headings = set(re.findall(r"^###? (\d(?:\.\d)?)", (DOCS / "math.md").read_text(), re.M))
    places = [*(ROOT / "src").rglob("*.py"), *DOCS.glob("*.md"), *(ROOT / "tests").rglob("*.py")]
    cited = {
        (number, path.name)
        for path in places
        for found in CITED.findall(path.read_text())
        for number in re.findall(r"\d(?:\.\d)?", found)
    }
    assert len(cited) > 40
    assert not {place for place in cited if place[0] not in headings}
