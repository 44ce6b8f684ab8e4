"""Errors of the library in the words of the command: `--draws` where Python has `draws=`.

Which to use: `in_flags`, at the one place where errors are printed.

The `kullback` command: finds the subcommand, and turns this package's errors into exit codes.

No torch is imported here nor by any command's module: only by the command's function, when it runs.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from cyclopts import App

from kullback.core import KullbackError, RunError, __version__

from .session import FULL, abandon, plain_letters

__all__ = ["app", "in_flags", "main"]

# arguments whose option has another name
OTHER = {
    "generator": "seed",
    "evaluation_draws": "draws",
    "overwrite": "force",
    "names": "name",
}
NAMED = re.compile(r"names?=\{'(\w+)': '(\w+)'\}")


def in_flags(text: str, flags: Iterable[str]) -> str:
    """Write an error's argument names as options: those before its colon and those in its hint.

    flags: the options of the command, such as `--draws`. Other text stays as it is.

    >>> in_flags("free_bits: expected nats; got -1. Try: free_bits=0", ["--free-bits"])
    '--free-bits: expected nats; got -1. Try: --free-bits 0'
    >>> in_flags("fit.json exists. Try: another folder, or force=True", ["--force"])
    'fit.json exists. Try: another folder, or --force'
    """
    known = set(flags)
    if "--name" in known:
        text = re.sub(r"^names\['(\w+)'\]", r"--name \1=…", text)
    head, mark, hint = text.partition("Try: ")
    first, colon, rest = head.partition(":")
    names = first.split(" and ")
    if colon and all(name.isidentifier() for name in names):
        head = " and ".join(_flag(name, known) or name for name in names) + colon + rest
    hint = NAMED.sub(lambda m: f"--name {m[1]}={m[2]}" if "--name" in known else m[0], hint)
    return head + mark + re.sub(r"(?<![\w/.-])([a-z]\w*)=('[^']*'|[\w.…]*)", _option(known), hint)


def _flag(name: str, known: set[str]) -> str | None:
    """Return the option, or the argument in capitals, that stands for an argument in Python."""
    name = OTHER.get(name, name)
    flags = (f"--{name.replace('_', '-')}", f"-{name}", name.upper())
    return next((flag for flag in flags if flag in known), None)


def _option(known: set[str]) -> Callable[[re.Match[str]], str]:
    def written(found: re.Match[str]) -> str:
        flag = _flag(found[1], known)
        value = found[2].strip("'")
        if flag is None or not flag.startswith("-") or flag == "--name":
            return found[0]
        return flag if value in ("True", "") else f"{flag} {value}"

    return written


HELP = """Kullback-Leibler divergence: measure it, minimise it, code with it.

Compare two distributions; fit q(z) to a log density; train a latent-variable model on your images
and measure it.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
2 wrong usage, 3 unusable data, 4 a gate failed, 130 interrupted (after saving)."""

EPILOGUE = """Examples:

  kullback kl 0.5,0.25,0.25 0.25,0.5,0.25 --unit bits --explain

  kullback kl "student_t(5)" "laplace(0,1)" --plot kl.svg

  kullback fit examples/two_peaks.py --direction both --plot two_peaks.svg

  kullback train                                    the embedded garments, two minutes

  kullback train photos/ --size 64 --minutes 30     your own folder

  kullback evaluate runs/photos-20260101-120000 --draws 5000"""

app = App(
    name="kullback",
    help=HELP,
    help_epilogue=EPILOGUE,
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command("kullback.cli.train:train", name="train", help="Train a VAE and report its evidence.")
app.command(
    "kullback.cli.evaluate:evaluate",
    name="evaluate",
    help="Measure a run: ELBO, log-likelihood bound, rate, distortion.",
)
app.command("kullback.cli.model_commands:sample", name="sample", help="Draw images from a run.")
app.command(
    "kullback.cli.model_commands:reconstruct",
    name="reconstruct",
    help="Images and their reconstructions.",
)
app.command(
    "kullback.cli.model_commands:encode",
    name="encode",
    help="Means and standard deviations of q(z|x) for your data.",
)
app.command(
    "kullback.cli.divergences:entropy",
    name="entropy",
    help="Entropy H(P): mean code length of data from P.",
)
app.command(
    "kullback.cli.divergences:cross_entropy",
    name="cross-entropy",
    help="Cross-entropy H(P, Q): mean code length when data from P are coded for Q.",
)
app.command(
    "kullback.cli.divergences:kl",
    name="kl",
    help="KL divergence KL(P‖Q), exact or with a standard error.",
)
app.command(
    "kullback.cli.fit:fit",
    name="fit",
    help="Fit q(z) to a log density and bound the errors of the fit.",
)
app.command("kullback.cli.divergences:js", name="js", help="Jensen-Shannon divergence JS(P, Q).")
app.command(
    "kullback.cli.audit:audit",
    name="audit",
    help="Find the divergence that a policy loss minimises.",
)
app.command(
    "kullback.cli.logprobs:logprobs",
    name="logprobs",
    help="KL from logged log-probabilities of tokens, checked first.",
)
app.command(
    "kullback.cli.model_commands:report", name="report", help="Rebuild a run's report.html."
)
app.command(
    "kullback.cli.checks:checks", name="checks", help="What this machine and install can do."
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; only this package's errors become messages."""
    given = sys.argv[1:] if arguments is None else arguments
    # neither a number nor - (standard input) is an option: with a space before them they are none
    given = [f" {text}" if re.match(r"-(\.?\d|inf|nan|$)", text) else text for text in given]
    if sys.stderr is None:  # closed by the caller
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    if sys.stdout is None:
        sys.stderr.write("kullback: standard output is closed\n")
        sys.exit(1)
    with plain_letters():
        sys.exit(_code(given))


def _code(given: list[str]) -> int:
    """Run the command; return its exit code, and say on standard error what went wrong."""
    try:
        try:
            code = app(given, result_action="return_value")
        finally:
            sys.stdout.flush()
    except KullbackError as error:
        return _failed(in_flags(str(error), _flags(given)), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away; that is its right
        abandon(sys.stdout)
        return 1
    except OSError as error:
        if "temporary directory" in str(error):  # of tempfile, which torch asks when imported
            return _failed(f"{error.strerror}: is the disk full?", RunError.exit_code)
        if error.errno not in FULL or error.filename is not None:
            raise
        abandon(sys.stdout)
        return _failed(f"output: cannot be written: {error.strerror}", RunError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        return _failed(f"not enough memory{_fewer(_flags(given))}", RunError.exit_code)
    return code if isinstance(code, int) else 0


def _failed(text: str, code: int) -> int:
    sys.stderr.write(f"kullback: {text}\n")
    return code


def _flags(given: list[str]) -> list[str]:
    """Return the options and arguments of the command that was asked for."""
    name = next((text for text in given if not text.startswith("-")), None)
    if name not in set(app):
        return []
    command: Any = app[name]
    return [flag for one in command.assemble_argument_collection() for flag in one.names]


def _is_memory(error: BaseException) -> bool:
    """Say whether an error is one of memory: torch raises a `RuntimeError` for it."""
    words = str(error)
    return isinstance(error, MemoryError) or "allocate" in words or "out of memory" in words


def _fewer(flags: list[str]) -> str:
    flag = next((flag for flag in ("--draws", "-n", "--batch-size") if flag in flags), None)
    return "" if flag is None else f". Try: a smaller {flag}"
