"""Write the table of `docs/closed_forms.md`: `python tools/closed_forms_table.py`.

A test calls `table` and compares it with the page, so that the two cannot part.
"""

from pathlib import Path

from kullback.exact import closed_forms

PAGE = Path(__file__).parents[1] / "docs" / "closed_forms.md"
START, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def table() -> str:
    """Return the Markdown table of every closed form, one line a pair."""
    titles = {"kl": "KL(p‖q)", "renyi": "Rényi D_α(p‖q)"}
    lines = ["| quantity | p | q | source |", "|---|---|---|---|"]
    lines += [
        f"| {titles[row.quantity]} | {row.p} | {row.q} | {row.source} |"
        for row in closed_forms.pairs()
    ]
    return "\n".join(lines) + "\n"


def replaced(page: str) -> str:
    """Return the page with its table brought up to date."""
    before, rest = page.split(START)
    return before + START + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
