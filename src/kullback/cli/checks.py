"""`kullback checks`: versions, devices, speed, and the extras that are or are not there."""

import importlib.metadata
import importlib.util
import platform
from typing import Annotated, Any

from cyclopts import Parameter

from kullback.core import __version__

from .session import prepare, print_json, write

__all__ = ["checks"]

EXTRAS = {
    "codec": ["constriction"],
    "flows": ["zuko"],
    "lm": ["transformers"],
    "tables": ["ibis", "duckdb", "pyarrow"],
}
PACKAGES = ("torch", "numpy", "safetensors", "cyclopts", "rich", "pillow", "matplotlib")


def checks(
    *, json: Annotated[bool, Parameter(help="Print one JSON object.", negative="")] = False
) -> None:
    """Show versions, the device a training would use, threads, measured speed, and extras."""
    prepare()
    fields = _gather()
    if json:
        print_json(fields)
        return
    lines = [f"kullback {__version__}, Python {fields['python']}, {fields['platform']}"]
    lines += [f"  {name} {version}" for name, version in fields["packages"].items()]
    lines.append(f"device: {fields['device']}, matrix products in {fields['precision']}")
    lines.append(f"threads a training would use now: {fields['threads']} of {fields['cores']}")
    for name, rate in fields["matmul_gflops"].items():
        lines.append(f"matrix products: {rate:.0f} GFLOP/s ({name})")
    lines.append(f"compiled C: {fields['compiled']}")
    for name, state in fields["extras"].items():
        lines.append(f"extra {name}: {state}")
    write("\n".join(lines) + "\n")


def _gather() -> dict[str, Any]:
    import os

    import torch

    from kullback.vae import (
        compiled_state,
        matmul_gflops,
        pick_device,
        pick_precision,
        pick_threads,
    )

    device, threads = pick_device(), pick_threads()
    rates = {
        f"{str(dtype).removeprefix('torch.')}, {n} thread{'s' * (n > 1)}": matmul_gflops(
            n, size=512, seconds=0.2, dtype=dtype
        )
        for dtype in (torch.float32, torch.bfloat16)
        for n in sorted({1, threads})
    }
    return {
        "kullback": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(device),
        "precision": str(pick_precision("auto", device)).removeprefix("torch."),
        "threads": threads,
        "cores": os.cpu_count(),
        "matmul_gflops": rates,
        "compiled": compiled_state(),
        "extras": {name: _state(name, modules) for name, modules in EXTRAS.items()},
    }


def _state(extra: str, modules: list[str]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"missing: pip install 'kullback[{extra}]'" if missing else "installed"
