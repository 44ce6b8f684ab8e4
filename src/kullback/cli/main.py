"""The `kullback` command: finds the subcommand, and turns this package's errors into exit codes.

No torch is imported here nor by any command's module: only by the command's function, when it runs.
"""

import re
import sys

from cyclopts import App

from kullback.core import KullbackError, __version__

__all__ = ["app", "main"]

HELP = """The Kullback-Leibler divergence, measured, minimised and paid.

Compare two distributions; train a latent-variable model on your images and know how good it is.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed,
2 wrong usage, 3 unusable data, 130 interrupted (after saving)."""

EPILOGUE = """Examples:

  kullback kl 0.5,0.25,0.25 0.25,0.5,0.25 --unit bits --explain

  kullback kl "student_t(5)" "laplace(0,1)" --plot kl.svg

  kullback fit examples/two_peaks.py --direction both --plot two_peaks.svg

  kullback train                                    the embedded garments, two minutes

  kullback train photos/ --size 64 --minutes 30     your own folder

  kullback evaluate runs/photos-20260101-120000 --draws 5000"""

app = App(name="kullback", help=HELP, help_epilogue=EPILOGUE, version=__version__)
app.command("kullback.cli.train:train", name="train", help="Train a VAE and report its evidence.")
app.command(
    "kullback.cli.evaluate:evaluate", name="evaluate", help="Measure a run, with error bars."
)
app.command("kullback.cli.sample:sample", name="sample", help="Draw images from a run.")
app.command(
    "kullback.cli.reconstruct:reconstruct",
    name="reconstruct",
    help="Images and their reconstructions.",
)
app.command(
    "kullback.cli.encode:encode", name="encode", help="Latent means and deviations of your data."
)
app.command(
    "kullback.cli.entropy:entropy", name="entropy", help="Average surprise of a distribution."
)
app.command(
    "kullback.cli.cross_entropy:cross_entropy",
    name="cross-entropy",
    help="Average surprise of one who believes another.",
)
app.command("kullback.cli.kl:kl", name="kl", help="How far one distribution is from another.")
app.command(
    "kullback.cli.fit:fit", name="fit", help="Fit q(z) to a log density; say how far to trust it."
)
app.command("kullback.cli.js:js", name="js", help="The same, symmetric and always finite.")
app.command(
    "kullback.cli.audit:audit", name="audit", help="Which divergence a policy loss descends."
)
app.command("kullback.cli.report:report", name="report", help="Rebuild a run's report.html.")
app.command(
    "kullback.cli.checks:checks", name="checks", help="What this machine and install can do."
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; only this package's errors become messages."""
    given = sys.argv[1:] if arguments is None else arguments
    # a number is never an option: with a space before it, its sign does not make it one
    given = [f" {text}" if re.match(r"-\.?\d", text) else text for text in given]
    try:
        code = app(given, result_action="return_value")
    except KullbackError as error:
        sys.stderr.write(f"kullback: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("kullback: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away; that is its right
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
