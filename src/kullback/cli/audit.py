"""`kullback audit`: which divergence a policy loss descends."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from kullback.core import require

from .session import prepare, print_json, say

__all__ = ["audit"]


def _help(text: str) -> Parameter:
    return Parameter(help=text, negative="")


def audit(
    loss: Annotated[str, Parameter(help="FILE.py:function, or package.module:function.")],
    /,
    *,
    form: Annotated[
        str,
        _help("loss, penalty (taken from the reward) or reward; auto goes by the function's name."),
    ] = "auto",
    credit: Annotated[
        str, _help("A penalty multiplies the score of: token (its own), to-go or sequence.")
    ] = "to-go",
    importance: Annotated[
        str, _help("A penalty is weighted off-policy by: none, token or sequence.")
    ] = "none",
    batch: Annotated[int, _help("Sequences a call, for losses that mix them: 1, 2 or 3.")] = 1,
    name: Annotated[
        list[str] | None, _help("What a parameter stands for, as in --name x=logp; repeatable.")
    ] = None,
    json: Annotated[bool, _help("Print one JSON object.")] = False,
    html: Annotated[
        Path | None, _help("Write the report with pictures to this .html file.")
    ] = None,
    force: Annotated[bool, _help("Replace an existing file.")] = False,
) -> None:
    """Say which divergence a policy loss descends, by enumeration of tiny worlds.

    The function is given what its parameters are called: logp, ref_logp, behaviour_logp (or
    old_logp), logits, ref_logits, tokens, mask, advantages and the usual other spellings. It runs:
    audit only code that you trust. The verdict is a result, not a failure: the exit code is 0.
    """
    prepare()
    if html is not None:
        require(html.suffix == ".html", "--html", "a .html file", str(html))
        new = force or not html.exists()
        require(new, "--html", "a file that does not exist", str(html), "--force")
    pairs = [one.partition("=") for one in name or []]
    for parameter, sign, role in pairs:
        require(
            bool(parameter and sign and role),
            "--name",
            "PARAMETER=MEANING",
            "".join((parameter, sign, role)),
        )
    import torch

    from kullback import tokens
    from kullback.report import audit_page, audit_text

    from .loading import function_at

    torch.set_num_threads(1)  # the tables are tiny
    found = tokens.audit(
        function_at(loss),
        form=form,
        credit=credit,
        importance=importance,
        batch=batch,
        names={parameter: role for parameter, _, role in pairs},
    )
    if html is not None:
        audit_page.write(found, html)
        say(f"report: {html}")
    if json:
        print_json(found.to_json())
    else:
        sys.stdout.write(audit_text.audit_table(found) + "\n")
