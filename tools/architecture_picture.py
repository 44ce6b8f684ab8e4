"""The two pictures of docs/architecture.md: the layers, and the flows through them.

`python tools/architecture_picture.py` writes `docs/img/layers.svg` and `docs/img/flows.svg`.
"""

from pathlib import Path
from typing import Any

from kullback.report import figures

IMAGES = Path(__file__).parents[1] / "docs" / "img"
LAYERS = {
    0: {"core": "Estimate, errors, files"},
    1: {"exact": "tables, closed forms, supports, tails, codes"},
    2: {"sampled": "estimators from samples, and their error bars"},
    3: {
        "data": "data sets with a protocol",
        "measure": "kb.kl(p, q) of anything",
        "tokens": "next-token distributions",
        "variational": "q(z) for any log density",
    },
    4: {"vae": "variational autoencoders: networks, training, evidence"},
    5: {"report": "tables, charts, explanations, HTML pages"},
    6: {"cli": "the command: parsing and printing"},
}
COLOURS = {
    "core": figures.MIST,
    "exact": figures.SKY,
    "sampled": figures.SAND,
    "data": "#d9ead3",
    "measure": "#d9ead3",
    "tokens": "#d9ead3",
    "variational": "#d9ead3",
    "vae": "#ead9ee",
    "report": "#f7e9b5",
    "cli": "#f7e9b5",
}
FLOWS = {
    "Measure": [
        ("measure", "inputs:\nwhat P and Q are"),
        ("exact", "supports, tails:\nis KL infinite?"),
        ("exact", "closed_forms,\ntables, countable"),
        ("sampled", "or: log_ratios with\nan error bar"),
        ("measure", "Measured"),
    ],
    "Measure tokens": [
        ("tokens", "logits, HiddenStates,\nSharded, TopK"),
        ("tokens", "divergences:\na Task"),
        ("tokens", "backends: sums\nover the vocabulary"),
        ("tokens", "values,\ngradients"),
        ("tokens", "losses,\nauditing"),
    ],
    "Train": [
        ("data", "loading: tensors\nand protocol"),
        ("vae", "model: encoder,\ndecoder, prior"),
        ("vae", "loop: one step\nat a time"),
        ("vae", "run folder,\ncheckpoints"),
        ("report", "run_page:\nreport.html"),
    ],
    "Evaluate": [
        ("vae", "run: load"),
        ("vae", "log-weights,\nno gradients"),
        ("vae", "evidence: bounds\non log p(x)"),
        ("sampled", "importance_weights:\nESS, k-hat"),
        ("report", "tables, JSON"),
    ],
    "Fit": [
        ("variational", "target:\nlog density"),
        ("variational", "stages: family\nand method"),
        ("variational", "optimise,\nfamilies"),
        ("variational", "diagnostics:\nevidence, verdict"),
        ("report", "fit_plot,\nexplain_fit"),
    ],
}


def box(panel: Any, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    """Draw one box."""
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.05"
    panel.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=style, fc=colour, ec=figures.FAINT)
    )


def layers() -> None:
    """Draw the folders, a row a layer; imports go down."""
    with figures.figure_of(7.2, 4.6) as figure:
        panel = figure.subplots()
        panel.set(xlim=(0, 10), ylim=(-0.1, 7.1))
        panel.axis("off")
        for floor, rooms in LAYERS.items():
            width = 9.0 / len(rooms)
            panel.text(0.25, floor + 0.45, str(floor), ha="center", va="center", color=figures.GREY)
            for index, (name, what) in enumerate(rooms.items()):
                left = 0.5 + index * width
                box(panel, left, floor + 0.05, width - 0.1, 0.8, COLOURS[name])
                middle = left + width / 2 - 0.05
                panel.text(middle, floor + 0.58, name, ha="center", va="center", weight="bold")
                panel.text(middle, floor + 0.27, what, ha="center", va="center", size=8)
        arrow = {"arrowstyle": "->", "color": figures.GREY}
        panel.annotate("", (9.65, 0.1), (9.65, 6.9), arrowprops=arrow)
        panel.text(9.75, 3.5, "imports", rotation=270, ha="left", va="center", size=8)
        figures.save(figure, IMAGES / "layers.svg")


def flows() -> None:
    """Draw what each flow passes through, from left to right, coloured by folder."""
    with figures.figure_of(7.2, 5.0) as figure:
        panel = figure.subplots()
        panel.set(xlim=(0, 10), ylim=(-0.15, 6.35))
        panel.axis("off")
        for row, (name, steps) in enumerate(reversed(FLOWS.items())):
            bottom = 1.28 * row
            panel.text(0.1, bottom + 1.02, name, weight="bold", va="center")
            for index, (folder, words) in enumerate(steps):
                left = 0.1 + 1.98 * index
                box(panel, left, bottom, 1.75, 0.85, COLOURS[folder])
                middle = left + 0.875
                panel.text(middle, bottom + 0.66, folder, ha="center", size=7, color=figures.GREY)
                panel.text(middle, bottom + 0.31, words, ha="center", va="center", size=7.5)
                if index:
                    arrow = {"arrowstyle": "->", "color": figures.INK}
                    ends = (left, bottom + 0.42), (left - 0.23, bottom + 0.42)
                    panel.annotate("", *ends, arrowprops=arrow)
        figures.save(figure, IMAGES / "flows.svg")


if __name__ == "__main__":
    layers()
    flows()
