"""Every threshold of estimates in print, and of processes, with its source."""

__all__ = [
    "COLLECTIVE_SECONDS",
    "GLIBC_MOST_MAPPED",
    "LISTED_VALUES",
    "NEGLIGIBLE_SKEWNESS",
    "PRINTED_DECIMALS",
    "PRINTED_MAGNITUDE",
    "SECONDS_TO_SPEAK",
]

LISTED_VALUES = 6  # values of a batch that are printed one by one: they fit a line of 80 columns
PRINTED_DECIMALS = 12  # more are left to %g: float64 has about 16 significant digits
PRINTED_MAGNITUDE = 1e12  # values from here on are left to %g, for the same reason
NEGLIGIBLE_SKEWNESS = 1e-6  # of t's Hall correction, g (1 + 2 t²)/6: below 1e-5, t's own error
COLLECTIVE_SECONDS = 1800.0  # for another process: torch's own for gloo; reading data takes long
SECONDS_TO_SPEAK = 5.0  # for the first process to tell its error: torchrun kills after 30
GLIBC_MOST_MAPPED = 2**25  # bytes: the most to which glibc's own threshold of mapped blocks grows
