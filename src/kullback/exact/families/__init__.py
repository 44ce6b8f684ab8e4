"""Closed forms between named families, by kind of family; `closed_forms` is their face."""

from .continuous import InverseGaussian
from .gaussian import Bounds, mixture_kl_bounds
from .pair import Pair, scores_as

__all__ = ["Bounds", "InverseGaussian", "Pair", "mixture_kl_bounds", "scores_as"]
