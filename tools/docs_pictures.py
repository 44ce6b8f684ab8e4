"""The pages of the docs that run: their code, what it prints, and the pictures it makes.

`python tools/docs_pictures.py` runs the pages and writes their pictures into `docs/img`; a test
runs them too, compares what they print with what they say, and the pictures with those committed.
"""

import contextlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "math",
    "surprise",
    "estimating_kl",
    "forward_and_reverse",
    "fitting",
    "coming_from",
    "token_kl",
    "policy_kl",
    "audit",
    "drift",
    "logprobs",
)

_FENCED = re.compile(r"^```python\n(.*?)^```\n(?:\n*^```text\n(.*?)^```\n)?", re.M | re.S)


class Block(NamedTuple):
    """A piece of a page's code, the line it starts on, and what the page says it prints."""

    code: str
    line: int
    said: str


def blocks(page: str) -> list[Block]:
    """Return the python blocks of a page, each with the text block that follows it, if any."""
    text = (DOCS / f"{page}.md").read_text()
    return [
        Block(found[1], text.count("\n", 0, found.start(1)) + 1, found[2] or "")
        for found in _FENCED.finditer(text)
    ]


def run(page: str) -> list[tuple[Block, str]]:
    """Run a page from top to bottom in the current folder; return what each block printed.

    Pictures go into the current folder, which needs `benchmarks/results` beside them.
    """
    names: dict[str, Any] = {"__name__": page}
    printed = []
    for block in blocks(page):
        source = "\n" * (block.line - 1) + block.code  # so that errors name the page's lines
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, f"{page}.md", "exec"), names)
        printed.append((block, out.getvalue()))
    return printed


def main() -> None:
    """Run all pages in a folder of their own and take their pictures over into `docs/img`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("benchmarks").symlink_to(DOCS.parent / "benchmarks")
        for name in PAGES:
            for block, printed in run(name):
                if printed != block.said:
                    print(f"{name}.md:{block.line} prints\n{printed}")
        for picture in Path().glob("*.svg"):
            shutil.copy(picture, DOCS / "img" / picture.name)


if __name__ == "__main__":
    main()
