"""A protocol to the data set that it describes, or to the options that read other data alike.

Which to use: `reload` for the data set, `settings_like` for the options.
"""

from pathlib import Path
from typing import Any

from kullback.core import DataError

from ..dataset import Dataset
from ..examples import Progress
from ..given import shards_in
from ..quantisation import Grid
from .sources import RULES
from .training_data import load

__all__ = [
    "reload",
    "settings_like",
]


def reload(
    protocol: dict[str, Any],
    *,
    source: Any = None,
    whole: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read again the data set that a protocol describes, with the same settings.

    Whether the data are still the same is for the caller to see: compare the hashes.

    Args:
        protocol: As in `Dataset.protocol`.
        source: Other data, read as those were: on the same grid of levels, or as continuous values
            where those were, whatever grid the others lie on. Objects in memory, as `load` takes
            them, are read by the settings of the protocol alone.
        whole: As in `load`.
        progress: As in `load`.

    Returns:
        The data set.

    Raises:
        DataError: The protocol is damaged or the source is gone.

    Example:
        >>> data = load("fashion", binarize="static", seed=3)
        >>> reload(data.protocol).protocol["sha256"] == data.protocol["sha256"]
        True
    """
    settings = _settings_of(protocol)
    if isinstance(source, str | Path):
        settings = settings_like(protocol)
    if source is None and protocol.get("given"):
        what = f"{protocol['source']}: made in memory, so it cannot be read again"
        raise DataError(f"{what}. Try: data=... in Python, the same object")
    own = source is None
    source = protocol.get("paths", protocol["source"]) if own else source
    shards = shards_in(source, settings["storage"]) if own and "shards" in protocol else None
    if shards is not None:
        shards.require(protocol["shards"])
    return load(source, progress=progress, whole=whole, **settings)


def settings_like(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `load` that read other data as a protocol's were read.

    On the same grid of levels, in the same size, with the same labels in the same order.

    Args:
        protocol: As in `Dataset.protocol`.

    Returns:
        Options of `load` by name.

    Raises:
        DataError: The protocol is damaged.

    Example:
        >>> found = settings_like(load("fashion", size=14, binarize="dynamic").protocol)
        >>> found["size"], found["binarize"]
        ((14, 14), 'dynamic')
    """
    return _settings_of(protocol) | _like(protocol) | {"storage": "auto"}


def _settings_of(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `load` that a protocol was made with."""
    names = ("size", "fit", "channels", "binarize", "seed", "test_fraction")
    try:
        settings = {name: protocol[name] for name in names}
        protocol["source"], protocol["kind"], protocol["event_shape"]
        size = settings["size"]
        settings["size"] = tuple(size) if size else None
        settings["levels"] = protocol.get("reading", "auto")
        settings["rules"] = int(protocol.get("rules", 1))
        settings["background"] = protocol.get("background", "black")
        settings["frames"] = protocol.get("frames", "first")
        settings["size_factors"] = protocol.get("size_factors", "auto")
        settings["label"] = str(protocol.get("label", ""))
        settings["labels"] = tuple(protocol.get("labels", ()))
        if protocol.get("kind") == "sound":
            settings |= {name: protocol.get(name) for name in ("rate", "clip")}
        settings["storage"] = str(protocol.get("storage", "auto"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"protocol: expected what load() stores; wrong or missing: {error}"
        ) from error
    return settings


def _like(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that bring other data to the values of these."""
    if protocol["kind"] == "sound":
        sound = protocol["sound"]
        return {"rate": int(sound["rate"]), "clip": sound["clip"] / sound["rate"]}
    if protocol["kind"] == "counts":
        sizes = str(protocol.get("sizes", "")) or "none"
        return {"levels": "counts", "rules": RULES, "size": None, "size_factors": sizes}
    if protocol["kind"] == "continuous":
        return {"levels": "none", "rules": RULES, "size": None}
    shape = protocol["event_shape"]
    found: dict[str, Any] = {"size": tuple(shape[1:]) or None}
    if len(shape) == 3:
        found["channels"] = "grey" if shape[0] == 1 else "rgb"
    return found | ({"grid": Grid.from_dict(protocol["grid"])} if "grid" in protocol else {})
