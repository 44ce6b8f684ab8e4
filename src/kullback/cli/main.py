"""The `kullback` command: its verbs with examples, `--config` files, and errors as exit codes.

Which to use: `main`. `in_flags` writes an error of the library in the words of the command:
`--draws` where Python has `draws=`. No torch is imported here nor by any command's module: only by
the command's function, when it runs.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import App, ArgumentCollection, Parameter, Token

from kullback.core import (
    ArgumentValueError,
    KullbackError,
    RunError,
    __version__,
    message,
    not_written,
    printable,
    processes,
    require,
)

from .options import Shared
from .session import (
    FULL,
    GATE_FAILED,
    INTERRUPTED,
    abandon,
    log,
    plain_letters,
    prepare,
    say,
    whole_imports,
    write,
)

__all__ = ["EXIT_CODES", "VERBS", "app", "completion", "in_flags", "main"]

# arguments whose option has another name
OTHER = {
    "start": "from",
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
    flags = (f"--{name.replace('_', '-')}", name.upper(), f"-{name}")
    return next((flag for flag in flags if flag in known), None)


def _option(known: set[str]) -> Callable[[re.Match[str]], str]:
    def written(found: re.Match[str]) -> str:
        flag = _flag(found[1], known)
        value = found[2] if " " in found[2] else found[2].strip("'")
        if flag is None or not flag.startswith("-") or flag == "--name":
            return found[0]
        return flag if value in ("True", "") else f"{flag} {value}"

    return written


SHARED = ("train", "evaluate")  # verbs whose work several processes share

EXIT_CODES = {
    0: "done",
    1: "a run failed: damaged or missing, improper target, disk or memory full",
    2: "an argument or option is wrong, typed or in a --config file",
    3: "the data, or your own Python file, cannot be used",
    GATE_FAILED: "a gate failed: --fail-above or --require-below",
    INTERRUPTED: "interrupted; a training has been saved",
}

HELP = """Kullback-Leibler divergence: measure it, minimise it, code with it.

Compare two distributions; fit q(z) to a log density; train a latent-variable model on your images \
and measure it. kullback VERB --help shows the options of a verb, with examples.

Results go to standard output, everything else to standard error."""


def _listed(examples: Iterable[str]) -> str:
    return "\n".join(f"  {example}" for example in examples)


EPILOGUE = "Exit codes:\n" + _listed(f"{code:<5}{words}" for code, words in EXIT_CODES.items())


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb: function, arguments, what the user gets, and commands that work as they stand."""

    function: str
    arguments: str
    help: str
    examples: tuple[str, ...]


VERBS = {
    "kl": Verb(
        "divergences:kl",
        "P Q",
        "KL divergence KL(P‖Q): mean extra code length, exact or with a standard error.",
        (
            "kullback kl 0.5,0.25,0.25 0.25,0.5,0.25 --unit bits --explain",
            'kullback kl "N(0,1)" "N(0, var=4)" --plot kl.svg',
            'kullback kl "student_t(5)" "laplace(0,1)" --draws 1e6 --json',
        ),
    ),
    "js": Verb(
        "divergences:js",
        "P Q",
        "Jensen-Shannon divergence JS(P, Q): symmetric, from 0 to 1 bit.",
        (
            "kullback js 1/2,1/4,1/4 1/4,1/2,1/4 --unit bits",
            'kullback js "N(0,1)" "N(3,1)"',
        ),
    ),
    "entropy": Verb(
        "divergences:entropy",
        "P",
        "Entropy H(P): mean code length of data from P.",
        (
            "kullback entropy counts.csv --normalise --unit bits",
            "cut -d, -f2 counts.csv | kullback entropy - --normalise",
        ),
    ),
    "cross-entropy": Verb(
        "divergences:cross_entropy",
        "P Q",
        "Cross-entropy H(P, Q): mean code length when data from P are coded for Q.",
        ('kullback cross-entropy "poisson(3)" "poisson(2)" --unit bits',),
    ),
    "fit": Verb(
        "fit:fit",
        "TARGET [DATA]",
        "An approximate posterior q(z) for a log density, with bounds on its errors.",
        (
            "kullback fit examples/two_peaks.py --family full_rank --explain --plot fit.svg",
            "kullback fit examples/two_peaks.py --direction both --plot two_peaks.svg",
            "kullback fit examples/calibrated.py --family full_rank --sbc 20 --plot sbc.svg",
        ),
    ),
    "audit": Verb(
        "user_code:audit",
        "LOSS",
        "The divergence that a policy loss minimises, found by enumeration.",
        ("kullback audit my_losses.py:k3 --html k3.html",),
    ),
    "drift": Verb(
        "drift:drift",
        "P [Q...]",
        "KL divergence of language models on a corpus, token by token, with its error.",
        (
            "kullback drift models/base models/int4 --text corpus/ --html drift.html",
            "kullback drift models/base adapters/new --text chats.jsonl --fail-above 5",
            "kullback drift models/base --store kept --text corpus/",
            "kullback drift kept models/int4 --require-below 5",
        ),
    ),
    "logprobs": Verb(
        "logprobs:logprobs",
        "[TABLES...]",
        "KL from logged log-probabilities of tokens, checked first.",
        ("kullback logprobs tokens.csv --p sampler --q trainer --by step --fail-above 0.1",),
    ),
    "train": Verb(
        "train:train",
        "[DATA]",
        "A trained VAE with its evidence on held-out images and a report.",
        (
            "kullback train --size 14 --epochs 2 --out runs/garments",
            "kullback train photos/ --size 16 --steps 200",
            "kullback train --size 14 --steps 30 --latent 8 --out runs/narrow",
        ),
    ),
    "evaluate": Verb(
        "train:evaluate",
        "RUN",
        "ELBO, bound on the log-likelihood, rate and distortion of a trained run.",
        (
            "kullback evaluate runs/garments --draws 20",
            "kullback evaluate runs/garments --sandwich --items 2 --explain",
        ),
    ),
    "compare": Verb(
        "compare:compare",
        "[RUNS...]",
        "Differences between runs on the same test images, with paired errors.",
        ("kullback compare runs/garments runs/narrow --draws 20",),
    ),
    "sample": Verb(
        "models:sample",
        "RUN",
        "New images drawn from a trained run.",
        ("kullback sample runs/garments -n 16 --out new.png",),
    ),
    "reconstruct": Verb(
        "models:reconstruct",
        "RUN DATA",
        "Your images above what the model makes of their codes.",
        ("kullback reconstruct runs/garments photos/ -n 8 --out pairs.png",),
    ),
    "encode": Verb(
        "models:encode",
        "RUN DATA",
        "Means and standard deviations of q(z|x) for your data.",
        ("kullback encode runs/garments photos/ --out latent.npz",),
    ),
    "decode": Verb(
        "models:decode",
        "RUN LATENTS",
        "The image of each z that you give: p(x|z), by its mean or drawn.",
        ("kullback decode runs/garments codes.npz --out decoded.png",),
    ),
    "report": Verb(
        "models:report",
        "RUN",
        "The page report.html of a trained run, written again.",
        ("kullback report runs/garments",),
    ),
    "export": Verb(
        "models:export",
        "RUN OUT",
        "A run as a folder to publish: weights, ONNX graphs, model card; nothing is uploaded.",
        (
            "kullback export runs/garments garments-vae",
            "kullback export runs/garments garments-vae --without-onnx",
        ),
    ),
    "checks": Verb(
        "models:checks",
        "",
        "What this machine and installation can do.",
        ("kullback checks --json",),
    ),
    "completion": Verb(
        "main:completion",
        "SHELL",
        "A script that completes verbs, options and files in your shell.",
        (
            "kullback completion bash > completion.bash && . ./completion.bash",
            "kullback completion fish > kullback.fish",
        ),
    ),
}

app = App(
    name="kullback",
    help=HELP,
    help_epilogue=EPILOGUE,
    help_format="plaintext",  # Markdown would cost a fifth of the time of a page of help
    version=__version__,
    suppress_keyboard_interrupt=False,
)
for _name, _verb in VERBS.items():
    app.command(
        f"kullback.cli.{_verb.function}",
        name=_name,
        usage=f"Usage: kullback {_name} [OPTIONS] {_verb.arguments}".rstrip(),
        help=_verb.help,
        help_epilogue="Examples:\n" + _listed(_verb.examples),
    )


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"], Parameter(help="The shell's name.")
    ],
    /,
    *,
    shared: Shared = None,
) -> None:
    """Print the script that completes verbs, options and files; each shell reads it its own way.

    bash: `. <(kullback completion bash)` in ~/.bashrc. zsh: a file `_kullback` in a folder of
    $fpath. fish: ~/.config/fish/completions/kullback.fish.
    """
    prepare(shared)
    write(app.generate_completion(shell=shell))


class ConfigFile:
    """Options from a TOML file (`--config`), for those that were not typed.

    Keys are the long names of options. Those above every table are the verb's; a table `[kl]` is
    read by `kullback kl` alone. `given` says which file each option came from.
    """

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def __call__(self, _app: App, verbs: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Add the file's values to a verb's arguments; what cyclopts calls after the typed ones."""
        self.given.clear()
        flag: Any = next((one for one in arguments if "--config" in one.names and one.tokens), None)
        if flag is None:
            return
        name = str(flag.tokens[0].value)
        for key, value in _options_in(name, verbs).items():
            found = _argument(arguments, key, name)
            texts = _texts(found.hint, value, f"{name}: {key}")
            if found.tokens or texts is None:
                continue
            self.given |= dict.fromkeys(found.names, name)
            for index, text in enumerate(texts):
                implied = {"implicit_value": True} if found.hint is bool else {"value": text}
                found.append(Token(keyword=f"--{key}", source=name, index=index, **implied))


def read_preset(_app: App, _verbs: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Add the values of `--preset` to a verb's arguments, for options that have none yet."""
    flag: Any = next((one for one in arguments if "--preset" in one.names and one.tokens), None)
    if flag is None:
        return
    from kullback.vae import preset

    source = f"--preset {flag.tokens[0].value}"
    values = dict(preset(str(flag.tokens[0].value)).options)
    if _argument(arguments, "layers", source).tokens:  # their sizes, typed, have a sum of their own
        values.pop("latent", None)
    for key, value in values.items():
        name = key.replace("_", "-")
        found = _argument(arguments, name, source)
        if found.tokens:
            continue
        listed = list(value) if isinstance(value, tuple) else value
        for index, text in enumerate(_texts(found.hint, listed, source) or []):
            found.append(Token(keyword=f"--{name}", source=source, index=index, value=text))


def _options_in(name: str, verbs: tuple[str, ...]) -> dict[str, Any]:
    """Read the options of a verb from a file; those in its table go before those above it."""
    import tomllib

    try:
        held = tomllib.loads(Path(name).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # errors of TOML and UTF-8 are values'
        why = getattr(error, "strerror", None) or str(error)
        raise ArgumentValueError(message("--config", "a TOML file", f"{name}: {why}")) from error
    tables = {key: value for key, value in held.items() if isinstance(value, dict)}
    for table in tables:
        require(table in VERBS, name, "tables named by verbs", f"[{table}]", _near(table, VERBS))
    plain = {key: value for key, value in held.items() if key not in tables}
    merged = plain | next((tables[verb] for verb in verbs if verb in tables), {})
    return {key.replace("_", "-"): value for key, value in merged.items()}


def _argument(arguments: ArgumentCollection, key: str, name: str) -> Any:
    """Return the argument that a key stands for."""
    flags = {flag[2:]: one for one in arguments for flag in one.names if flag.startswith("--")}
    flags.pop("config")
    hint = _near(key, flags)
    require(key in flags, f"{name}: {key}", "an option of this verb", "another key", hint)
    return flags[key]


def _near(name: str, known: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def _texts(hint: Any, value: Any, where: str) -> list[str] | None:
    """Write a TOML value as it would be typed, one text a token; None for a flag that is off."""
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
    if bool in kinds:
        require(isinstance(value, bool), where, "true or false", repr(value))
        return [""] if value else None
    if choices:
        near = _near(value, choices) if isinstance(value, str) else ""
        require(value in choices, where, " or ".join(map(repr, choices)), repr(value), near)
        return [value]
    if any(get_origin(kind) is list for kind in kinds):
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
        require(good, where, "a list of texts", repr(value))
        return list(value)
    if int in kinds:
        require(plain and float(value).is_integer(), where, "a whole number", repr(value))
        return [str(int(value))]
    if float in kinds:
        require(plain, where, "a number", repr(value))
        return [repr(value)]
    if isinstance(value, list) and Path not in kinds:  # hidden = [200, 200]
        good = all(type(one) in (int, float) for one in value)
        require(good, where, "a text, a number or a list of numbers", repr(value))
        return [",".join(map(str, value))]
    require(isinstance(value, str) or (plain and Path not in kinds), where, "a text", repr(value))
    return [str(value)]


config = ConfigFile()
app.config = (config, read_preset)


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
    with plain_letters(), whole_imports():
        code = _code(given)
    processes.leave(code)


def _code(given: list[str]) -> int:
    """Run the command; return its exit code, and say on standard error what went wrong."""
    if not _takes_part(given):
        return 0
    try:
        try:
            code = app(given, result_action="return_value", print_error=processes.speaks())
            log("done")
        finally:
            sys.stdout.flush()
    except KullbackError as error:
        return _failed(_placed(in_flags(str(error), _flags(given))), error.exit_code)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away; that is its right
        abandon(sys.stdout)
        return 1
    except OSError as error:
        if "temporary directory" in str(error):  # of tempfile, which torch asks when imported
            return _failed(f"{error.strerror}: is the disk full?", RunError.exit_code)
        if error.errno not in FULL or error.filename is not None:
            raise
        abandon(sys.stdout)
        return _failed(str(not_written("output", error)), RunError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        return _failed(f"not enough memory{_fewer(_flags(given))}", RunError.exit_code)
    return code if isinstance(code, int) else 0


def _takes_part(given: list[str]) -> bool:
    """Say whether this process runs the command: of a verb that is not shared the first one."""
    rank, size = processes.place()
    if size == 1 or _verb_of(given) in SHARED:
        return True
    if rank == 0 and not {"-q", "--quiet"} & set(given):
        say(f"note: {_verb_of(given) or 'this'} takes one process: the first of {size:,}")
    return rank == 0


def _verb_of(given: list[str]) -> str | None:
    return next((text for text in given if not text.startswith("-")), None)


def _placed(text: str) -> str:
    """Name the file that an option came from: `my.toml: draws: expected …`."""
    flag, colon, rest = text.partition(":")
    return (
        f"{config.given[flag]}: {flag.lstrip('-')}{colon}{rest}" if flag in config.given else text
    )


def _failed(text: str, code: int) -> int:
    if processes.speaks():
        sys.stderr.write(f"kullback: {printable(text)}\n")
    return code


def _flags(given: list[str]) -> list[str]:
    """Return the options and arguments of the command that was asked for."""
    name = _verb_of(given)
    if name is None or name not in set(app):
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
