"""A small causal LM distilled from a larger one: forward against reverse against Jensen-Shannon.

A teacher of 230 thousand weights learns to write a text, letter by letter. A student of 2 thousand
is brought near it by KL(teacher‖student); from there one copy goes on with that, one with
KL(student‖teacher), one with JSD(½). (From further off the reverse KL is slow, for it hardly pulls
where the student has no mass yet, and would be measured half-way.) At the end all three are exact
sums over the vocabulary at prefixes of held-out text: each student is the best by what it was
trained for, and a picture shows what it covers and what it seeks (MATH 4.1, 4.2).
Run: python examples/distill.py [TEXT.txt] [--steps 600] [--out distill.svg]
Needs: pip install transformers; two minutes on one core. Without a file: Python's own help pages.
"""

import argparse
import copy
import math
from pathlib import Path
from pydoc_data.topics import topics

import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel

from kullback.tokens import compare, distill_loss, distill_terms, js, log_prob

LENGTH, BATCH, DECADES = 32, 32, 5
COLUMNS = ("kl", "reverse_kl", "q_entropy", "p_entropy", "q_log_prob")
COLORS = {"teacher": "#767676", "forward": "#0072b2", "reverse": "#d55e00", "jsd": "#009e73"}


def read(path):
    """Return token ids of a text, split 90/10 by position, and the vocabulary."""
    text = Path(path).read_text(encoding="utf-8") if path else "\n".join(topics.values())
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


def train(net, data, steps, rate, loss_of):
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(steps):
        tokens, following = next(data)
        loss = loss_of(net(tokens).logits, tokens, following)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def towards(teacher, divergence):
    """Return the loss that brings a student to the teacher."""

    def loss_of(logits, tokens, _):
        return distill_loss(distill_terms(logits, teacher(tokens).logits, divergence=divergence))

    return loss_of


@torch.no_grad()
def measured(student, teacher, ids, count=8):
    """Compare exactly, at the prefixes of held-out text."""
    data, found = batches(ids, 99), []
    for _ in range(count):
        tokens, following = next(data)
        logits = teacher(tokens).logits, student(tokens).logits
        one = compare(*logits, ids=following)
        columns = {name: getattr(one, name) for name in COLUMNS}
        found.append({**columns, "js": js(*logits)})
    return {name: sum(float(one[name].mean()) for one in found) / count for name in found[0]}


@torch.no_grad()
def mass_by_decade(student, teacher, ids):
    """Return how much of its probability a model puts on letters by the teacher's probability.

    The first entry is for letters to which the teacher gives more than a tenth, the next for those
    with more than a hundredth, and so on; averages over held-out prefixes.
    """
    tokens, _ = next(batches(ids, 98))
    own, given = student(tokens).logits.softmax(-1), teacher(tokens).logits.log_softmax(-1)
    decade = (-given / math.log(10)).floor().long().clamp(0, DECADES - 1)
    mass = torch.zeros(DECADES).index_add(0, decade.flatten(), own.flatten())
    return mass / tokens.numel()


def draw(results, masses, path):
    """Left: whose letters each student writes too often or too rarely. Right: both KLs."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for at, (name, one) in enumerate(masses.items()):
        places = [i + 0.2 * (at - 1.5) for i in range(DECADES)]
        left.bar(places, one.numpy(), 0.19, color=COLORS[name], label=name)
    decades = [f"over {100 / 10 ** (i + 1):g} %" for i in range(DECADES - 1)]
    left.set_xticks(range(DECADES), [*decades, "less"])
    left.set(yscale="log", ylim=(1e-4, 1.3), xlabel="letters to which the teacher gives")
    left.set_title("how much of its probability each model puts there", fontsize=10)
    left.legend(frameon=False, fontsize=9)
    for at, (name, one) in enumerate(results.items()):
        pair = one["kl"], one["reverse_kl"]
        right.bar([at - 0.2, at + 0.2], pair, width=0.36, color=COLORS[name])
        for shift, value, mark in ((-0.2, pair[0], "t‖s"), (0.2, pair[1], "s‖t")):
            text = f"{mark}\n{value:.3f}"
            right.text(at + shift, value, text, ha="center", va="bottom", fontsize=8)
    right.set_xticks(range(len(results)), list(results))
    right.margins(y=0.2)
    right.set(ylabel="nats a letter")
    right.set_title("KL(teacher‖student), KL(student‖teacher)", fontsize=10)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def of_text(logits, _, following):
    """Return the surprise of the text itself, nats a letter: what teaches without a teacher."""
    return -log_prob(logits, following).mean()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", help="a text file; by default Python's own help pages")
    parser.add_argument(
        "--steps", type=int, default=600, help="of each training: teacher, start, students"
    )
    parser.add_argument("--out", default="distill.svg", help="where the picture goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the tensors are small
    ids, held_out, letters = read(options.text)
    teacher = model(len(letters), 96, 2, seed=0)
    train(teacher, batches(ids, 0), options.steps, 5e-3, of_text)
    teacher.requires_grad_(requires_grad=False)
    start = model(len(letters), 8, 1, seed=1)
    train(start, batches(ids, 1), options.steps, 2e-2, towards(teacher, "forward"))
    sizes = f"{teacher.num_parameters():,} and {start.num_parameters():,}"
    print(f"teacher and students: {sizes} weights, {len(letters)} letters; nats a letter")
    print("trained by    KL(t‖s)  KL(s‖t)   JSD(½)  H(student)  H(teacher)  surprise of the text")
    results, masses = {}, {"teacher": mass_by_decade(teacher, teacher, held_out)}
    for divergence in ("forward", "reverse", "jsd"):
        student = copy.deepcopy(start)
        train(student, batches(ids, 2), options.steps, 5e-3, towards(teacher, divergence))
        found = results[divergence] = measured(student, teacher, held_out)
        masses[divergence] = mass_by_decade(student, teacher, held_out)
        names = ("kl", "reverse_kl", "js", "q_entropy", "p_entropy")
        numbers = "  ".join(f"{found[name]:7.4f}" for name in names)
        print(f"{divergence:12} {numbers}    {-found['q_log_prob']:.3f}")
    draw(results, masses, options.out)
    print(f"picture: {options.out}")
    return results


if __name__ == "__main__":
    main()
