"""Figures of the code's structure: files, lines of code, functions, entries of a folder.

`python tools/structure.py [FOLDER]` prints them for `src/kullback` (or another folder of Python
files): files a thousand lines, lines of code (docstrings, comments and blank lines apart), the
median, the 90th percentile and the longest function, and the folders with most entries.
"""

import ast
import io
import statistics
import sys
import tokenize
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "kullback"
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the lines that docstrings take."""
    found: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        text = first.value if isinstance(first, ast.Expr) else None
        if first and isinstance(text, ast.Constant) and isinstance(text.value, str):
            found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def code_lines(text: str) -> set[int]:
    """Return the lines that hold code."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, *LAYOUT):
            found |= set(range(token.start[0], token.end[0] + 1))
    return found - docstring_lines(ast.parse(text))


def main(root: Path) -> None:
    """Print the figures of a folder."""
    texts = {path: path.read_text() for path in sorted(root.rglob("*.py"))}
    lines = sum(len(text.splitlines()) for text in texts.values())
    code = {path: code_lines(text) for path, text in texts.items()}
    sizes = sorted(
        len(code[path] & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    rate = 1000 * len(texts) / lines
    print(f"{len(texts)} files, {lines:,} lines: {rate:.2f} files a thousand lines")
    print(f"{sum(map(len, code.values())):,} lines of code (docstrings and comments apart)")
    p90 = statistics.quantiles(sizes, n=10)[-1]
    print(f"functions: median {statistics.median(sizes):g}, p90 {p90:g}, longest {sizes[-1]} lines")
    folders = {path.parent for path in texts}
    count = {
        folder: sum(one.name not in ("__pycache__", "__init__.py") for one in folder.iterdir())
        for folder in folders
    }
    for folder in sorted(count, key=lambda one: -count[one])[:5]:
        print(f"{count[folder]:3} entries in {folder.relative_to(root.parent)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE)
