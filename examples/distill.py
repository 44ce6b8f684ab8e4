"""A small causal LM distilled from a larger one: forward against reverse against Jensen-Shannon.

A teacher of some 0.8 million weights learns to write a text, character by character; then students
of 30 thousand start from the same weights and are brought to it by KL(teacher‖student),
KL(student‖teacher), or JSD(½). At the end both KLs are exact sums over the vocabulary at prefixes
of held-out text, and pictures show what each student covers and what it seeks (MATH 4.1, 4.2).
Run: python examples/distill.py [TEXT.txt] [--seconds 12] [--out distill.svg]
Needs: pip install transformers; a minute on two cores. Without a file, a text built in is used.
"""

import argparse
import itertools
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel

from kullback.tokens import compare, distill_loss, distill_terms, log_prob

FALLBACK = (
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the "
    "slings and arrows of outrageous fortune, or to take arms against a sea of troubles, and by "
    "opposing end them. To die, to sleep, no more; and by a sleep to say we end the heart-ache "
    "and the thousand natural shocks that flesh is heir to: 'tis a consummation devoutly to be "
    "wish'd. To die, to sleep; to sleep, perchance to dream: ay, there's the rub. "
)
LENGTH, BATCH = 64, 24
COLORS = {"teacher": "#767676", "forward": "#0072b2", "reverse": "#d55e00", "jsd": "#009e73"}


def read(path):
    """Return token ids of a text, split 90/10 by position, and the vocabulary."""
    text = Path(path).read_text(encoding="utf-8") if path else 20 * FALLBACK
    letters = sorted(set(text))
    ids = torch.tensor([letters.index(letter) for letter in text[:300_000]])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], letters


def model(vocabulary, width, layers, seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=LENGTH, n_embd=width, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def batches(ids, seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        start = torch.randint(len(ids) - LENGTH - 1, (BATCH, 1), generator=generator)
        window = ids[start + torch.arange(LENGTH + 1)]
        yield window[:, :-1], window[:, 1:]


def train(net, data, seconds, loss_of):
    """Take steps for so long; return how many."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    start = time.process_time()
    for step in itertools.count(1):
        tokens, following = next(data)
        loss = loss_of(net(tokens).logits, tokens, following)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if time.process_time() - start > seconds:
            return step


@torch.no_grad()
def measured(student, teacher, ids, count=8):
    """Compare exactly, at the prefixes of held-out text."""
    data, found = batches(ids, 99), []
    for _ in range(count):
        tokens, following = next(data)
        logits = teacher(tokens).logits, student(tokens).logits
        found.append(compare(*logits, ids=following))
    columns = ("kl", "reverse_kl", "q_entropy", "p_entropy", "q_log_prob")
    return {name: torch.cat([getattr(one, name).flatten() for one in found]) for name in columns}


@torch.no_grad()
def table(net, tokens):
    return net(tokens).logits[:, -1].softmax(-1).mean(0)


def draw(results, tables, letters, path):
    """Left: where each student puts its mass, letters sorted by the teacher's. Right: the KLs."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    order = tables["teacher"].argsort(descending=True)[:40]
    for name, one in tables.items():
        style = {"color": COLORS[name], "label": name}
        if name == "teacher":
            left.bar(range(len(order)), one[order], width=0.9, alpha=0.35, **style)
        else:
            left.plot(range(len(order)), one[order], marker="o", markersize=3, linewidth=1, **style)
    left.set_xticks(range(len(order)), [repr(letters[i])[1:-1] for i in order], fontsize=7)
    left.set(yscale="log", ylim=(1e-5, 1), title="next letter, after one prefix")
    left.legend(frameon=False, fontsize=8)
    for at, (name, one) in enumerate(results.items()):
        pair = float(one["kl"].mean()), float(one["reverse_kl"].mean())
        right.bar([at - 0.2, at + 0.2], pair, width=0.36, color=COLORS[name], alpha=0.9)
        for shift, value, mark in ((-0.2, pair[0], "t‖s"), (0.2, pair[1], "s‖t")):
            right.text(at + shift, value, mark, ha="center", va="bottom", fontsize=7)
    right.set_xticks(range(len(results)), list(results))
    right.set(ylabel="nats a letter", title="KL, held-out text")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", help="a text file; a text built in by default")
    parser.add_argument("--seconds", type=float, default=12.0, help="of CPU time for each model")
    parser.add_argument("--out", default="distill.svg", help="where the picture goes")
    options = parser.parse_args(arguments)
    ids, held_out, letters = read(options.text)
    teacher = model(len(letters), 128, 4, seed=0)
    steps = train(
        teacher,
        batches(ids, 0),
        2 * options.seconds,
        lambda logits, _, following: -log_prob(logits, following).mean(),
    )
    teacher.requires_grad_(requires_grad=False)
    print(f"teacher: {teacher.num_parameters():,} weights, {steps} steps, {len(letters)} letters")
    students, results = {}, {}
    for divergence in ("forward", "reverse", "jsd"):
        student = students[divergence] = model(len(letters), 24, 2, seed=1)

        def loss_of(logits, tokens, _, divergence=divergence):
            terms = distill_terms(logits, teacher(tokens).logits, divergence=divergence)
            return distill_loss(terms)

        steps = train(student, batches(ids, 2), options.seconds, loss_of)
        found = results[divergence] = measured(student, teacher, held_out)
        print(
            f"{divergence:8} {steps:5} steps  KL(teacher‖student) {float(found['kl'].mean()):.4f}  "
            f"KL(student‖teacher) {float(found['reverse_kl'].mean()):.4f}  "
            f"H(student) {float(found['q_entropy'].mean()):.3f} "
            f"(teacher {float(found['p_entropy'].mean()):.3f})  "
            f"surprise of the text {-float(found['q_log_prob'].mean()):.3f} nats a letter"
        )
    prefix = held_out[:LENGTH][None]
    tables = {name: table(net, prefix) for name, net in ({"teacher": teacher} | students).items()}
    draw(results, tables, letters, options.out)
    print(f"picture: {options.out}")
    return {name: {k: float(v.mean()) for k, v in one.items()} for name, one in results.items()}


if __name__ == "__main__":
    main()
