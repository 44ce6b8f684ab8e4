"""`kullback audit`: which divergence a policy loss descends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from kullback.core import require

from .options import Whole
from .session import check_new, prepare, print_json, say, write

__all__ = ["audit"]


def _help(text: str) -> Parameter:
    return Parameter(help=text, negative="")


@dataclass(kw_only=True)
class AuditOptions:
    """How to take the loss and where the report goes."""

    form: Annotated[
        str,
        _help("loss, penalty (taken from the reward) or reward; auto goes by the function's name."),
    ] = "auto"
    credit: Annotated[
        str, _help("A penalty multiplies the score of: token (its own), to-go or sequence.")
    ] = "to-go"
    importance: Annotated[
        str, _help("A penalty is weighted off-policy by: none, token or sequence.")
    ] = "none"
    batch: Annotated[Whole, _help("Sequences a call, for losses that mix them: 1, 2 or 3.")] = 1
    name: Annotated[
        list[str] | None, _help("What a parameter stands for, as in --name x=logp; repeatable.")
    ] = None
    json: Annotated[bool, _help("Print one JSON object.")] = False
    html: Annotated[Path | None, _help("Write a page with pictures to this .html file.")] = None
    force: Annotated[bool, _help("Replace an existing file.")] = False

    def check(self) -> None:
        """Raise a ValueError that says which option is wrong, if one is."""
        if self.html is not None:
            check_new("--html", self.html, ".html", force=self.force)
        for one in self.name or []:
            good = all(one.partition("="))
            require(good, "--name", "PARAMETER=MEANING", one, "--name x=logp")

    def arguments(self) -> dict[str, Any]:
        """Return what the library's audit is given."""
        parts = (one.partition("=") for one in self.name or [])
        names = {parameter: role for parameter, _, role in parts}
        same = ("form", "credit", "importance", "batch")
        return {key: getattr(self, key) for key in same} | {"names": names}


def audit(
    loss: Annotated[str, Parameter(help="FILE.py:function, or package.module:function.")],
    /,
    *,
    options: Annotated[AuditOptions | None, Parameter(name="*")] = None,
) -> None:
    """Say which divergence a policy loss descends, by enumeration of tiny worlds.

    The function is given what its parameters are called: logp, ref_logp, behaviour_logp (or
    old_logp), logits, ref_logits, tokens, mask, advantages and the usual other spellings. It runs:
    audit only code that you trust. The verdict is a result, not a failure: the exit code is 0.
    """
    prepare()
    options = options or AuditOptions()
    options.check()
    import torch

    from kullback import tokens
    from kullback.report import audit_page

    from .user_files import function_at, user_code

    torch.set_num_threads(1)  # the tables are tiny
    function = function_at(loss)
    with user_code(None, traceback=True):
        found = tokens.audit(function, **options.arguments())
    if options.html is not None:
        audit_page.write(found, options.html)
        say(f"report: {options.html}")
    if options.json:
        print_json(found.to_json())
    else:
        write(audit_page.audit_table(found) + "\n")
