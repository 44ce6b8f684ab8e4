"""`kullback drift`: how far language models have moved from a reference on a corpus."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from kullback.core import ArgumentValueError, printable, processes, require, write_atomic

from .options import GateOptions, Shared, Whole, about, exit_code
from .session import bar, check_new, prepare, print_json, say, write

__all__ = ["drift"]


@dataclass(kw_only=True)
class DriftOptions(GateOptions):
    """What is read, how it is measured, and where results go."""

    text: Annotated[
        list[Path] | None,
        Parameter(
            help="Files, folders, JSON lines (text or chats); repeatable.",
            negative="",
            consume_multiple=True,
        ),
    ] = None
    field: Annotated[str, about("The field of a JSON line that holds the text.")] = "text"
    context: Annotated[Whole | None, about("Tokens a model sees (default: 2048 at most).")] = None
    stride: Annotated[
        Whole | None, about("Tokens by which windows move on (default: half the context).")
    ] = None
    limit: Annotated[Whole | None, about("Stop after so many scored tokens.")] = None
    vocab: Annotated[Whole | None, about("Leave out what a head has beyond so many tokens.")] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64", "auto"],
        about("Of weights and hidden states; logits are float32 at least."),
    ] = "float32"
    device: Annotated[str, about("cpu, cuda or cuda:1.")] = "cpu"
    out: Annotated[
        Path | None, about("Keep what is measured here; the same command then goes on.")
    ] = None
    store: Annotated[
        Path | None, about("Keep P here instead, for candidates to come; no Q is given.")
    ] = None
    top_k: Annotated[
        Whole | None, about("With --store: only so many tokens and the tail's mass (bounds).")
    ] = None
    json: Annotated[bool, about("Print one JSON object.")] = False
    parquet: Annotated[Path | None, about("Write a row a token to this .parquet file.")] = None
    html: Annotated[Path | None, about("Write a page with the text to this .html file.")] = None
    force: Annotated[bool, about("Replace existing files.")] = False

    def check(self, qs: tuple[Path, ...]) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        self.check_gate()
        if self.parquet is not None:
            check_new("--parquet", self.parquet, ".parquet", force=self.force)
        if self.html is not None:
            check_new("--html", self.html, ".html", force=self.force)
        if self.store is not None:
            require(not qs, "--store", "P alone", f"{len(qs)} candidates")
            require(bool(self.text), "--text", "files to read with --store", "none")
        else:
            require(bool(qs), "Q", "at least one candidate after P", "none", "--store DIR keeps P")
            require(self.top_k is None, "--top-k", "--store DIR beside it", "none")

    def windows(self) -> dict[str, Any]:
        """Return the options of windows as the library takes them."""
        return {"context": self.context, "stride": self.stride, "limit": self.limit}


def drift(
    p: Annotated[
        Path,
        Parameter(
            help="The reference: a checkpoint's folder, a .gguf file, a LoRA adapter's folder, a "
            "folder made with --store, llama.cpp's file of logits, or .jsonl of vLLM's or SGLang's "
            "answers with lists of candidates."
        ),
    ],
    /,
    *qs: Annotated[Path, Parameter(name="Q", help="The candidates, likewise.")],
    options: Annotated[DriftOptions | None, Parameter(name="*")] = None,
    shared: Shared = None,
) -> int:
    """KL(P‖Q) of language models on a corpus, token by token, with errors clustered by document.

    Both directions, Jensen-Shannon, entropies, perplexities, agreement of the first tokens; by
    position, confidence and role; the tokens that moved most. Several candidates are compared in
    pairs. Every token's whole vocabulary is summed. With torchrun the processes share the work.
    """
    prepare(shared)
    options = options or DriftOptions()
    options.check(qs)
    with _processes(options) as first:
        if options.store is not None:
            _store(p, options, first=first)
            return 0
        found = _measured(p, qs, options, first=first)
        return _show(found, options) if first else 0


@contextmanager
def _processes(options: DriftOptions) -> Iterator[bool]:
    """Join the other processes that torchrun started; yield whether this one shows results."""
    if options.device == "cuda":
        options.device = processes.own_gpu(options.device)
    with processes.joined() as group:
        yield group.first


def _store(path: Path, options: DriftOptions, *, first: bool) -> None:
    from kullback import lm

    (p,) = lm.load_models(path, [], dtype=options.dtype, device=options.device)
    p = p if options.vocab is None else p.cut(options.vocab)
    documents = lm.read_documents(options.text or [], p.tokenizer, text_field=options.field)
    with _progress("storing", first) as advance:
        plan = lm.plan_windows([p], documents, **options.windows())
        lm.store(
            p,
            documents,
            options.store or Path(),
            top_k=options.top_k,
            on_batch=lambda count: advance(count, plan.scored),
            **options.windows(),
        )
    if first:
        say(f"stored: {plan.scored:,} tokens in {options.store}")


def _measured(path: Path, qs: tuple[Path, ...], options: DriftOptions, *, first: bool) -> Any:
    from kullback import lm

    p, candidates, plan = _loaded(path, qs, options)
    with _progress("measuring", first) as advance:
        return lm.drift(
            p,
            candidates,
            plan,
            on_batch=lambda table: advance(len(table), plan.scored),
            out=options.out,
            tops=options.html is not None,
        )


def _loaded(path: Path, qs: tuple[Path, ...], options: DriftOptions) -> tuple[Any, list[Any], Any]:
    """Return P, the candidates, and the windows that they read."""
    from kullback import lm

    how = {"dtype": options.dtype, "device": options.device}
    kind = lm.stored_kind(path)
    if kind == "":
        p, *candidates = lm.load_models(path, qs, **how)
        if options.vocab is not None:
            p, *candidates = (one.cut(options.vocab) for one in (p, *candidates))
        tokenizer = p.tokenizer or next((q.tokenizer for q in candidates if q.tokenizer), None)
        require(bool(options.text), "--text", "files to read", "none")
        documents = lm.read_documents(options.text or [], tokenizer, text_field=options.field)
        return p, candidates, lm.plan_windows([p, *candidates], documents, **options.windows())
    given = [name for name in ("text", "context", "stride", "limit") if getattr(options, name)]
    if given:
        text = f"--{given[0]}: expected none with a stored P, which keeps its text and windows"
        raise ArgumentValueError(text)
    candidates = list(lm.load_models(qs[0], qs[1:], **how))
    if options.vocab is not None:
        candidates = [one.cut(options.vocab) for one in candidates]
    stored, plan = lm.read_kept(path, candidates, device=options.device)
    return stored, candidates, plan


@contextmanager
def _progress(what: str, first: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how much is done, tokens a second, and (by the bar) the time left."""
    if not first:
        yield lambda _count, _total: None
        return
    done, start = 0, time.monotonic()
    with bar(what) as update:

        def advance(count: int, total: int) -> None:
            nonlocal done
            done += count
            passed = max(time.monotonic() - start, 1e-3)
            share = int(os.environ.get("WORLD_SIZE", "1"))
            left = max(0.0, passed * (total / share / done - 1.0))
            text = f"{share * done / passed:,.0f} tokens/s, {left:,.0f} s left"
            update(min(share * done, total), total, text)

        yield advance


def _show(found: Any, options: DriftOptions) -> int:
    from kullback import report

    gate = options.gate(found)
    if options.parquet is not None:
        import pyarrow.parquet

        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(found.to_arrow(), sink)
        write_atomic(options.parquet, sink.getvalue().to_pybytes())
        say(f"tokens: {options.parquet}")
    if options.html is not None:
        report.write_drift(found, options.html)
        say(f"report: {options.html}")
    if options.json:
        print_json(found.to_dict() | {"gate": gate and asdict(gate)})
    else:
        write(printable(report.drift_text(found)))
    return exit_code(gate)
