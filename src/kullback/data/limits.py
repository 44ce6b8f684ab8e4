"""Every threshold of reading data, with its source."""

__all__ = [
    "BIT_DEPTH_FROM",
    "CHANCE",
    "CHANCE_OF_REPEATED",
    "DISTINCT",
    "FEW_VALUES",
    "HEAVY_TAIL",
    "MOST_LEVELS",
    "POINT_MASS",
    "REPEATS",
    "ROUNDINGS",
    "ROUNDINGS_IN_FLOAT64",
    "ROWS_COMPARED",
    "WINDOW",
]

MOST_LEVELS = 65_536  # a file stores at most 16 bits a value; finer grids are as good as continuous
DISTINCT = 4 * MOST_LEVELS  # each level in at most this many roundings: train and test, two roads
ROUNDINGS = (0.5, 1.0, 2.0, 4.0)  # eps of the largest value: stored once … three operations
ROUNDINGS_IN_FLOAT64 = 16.0  # where the search itself rounds as much as the data do
WINDOW = 0.4  # rounding of two values may take up this share of a step; at ½ neighbours touch
CHANCE = 25.0  # −log of the chance that other values lie on a grid: 65,536 grids tried, odds 1e-6
CHANCE_OF_REPEATED = 7.0  # the same at odds 1e-3, besides the log of the grids tried
REPEATS = 4  # few values, each seen so often on average, are levels: a density never repeats one
BIT_DEPTH_FROM = 128  # more levels than this are a whole bit depth (8, 9, … 16 bits) with gaps
FEW_VALUES = 256  # unequally spaced values so few are levels by rank (a gamma curve of 8 bits)
POINT_MASS = 0.05  # a column with so large a share of rows at one value has no density there
ROWS_COMPARED = 1000  # images in which a subtracted mean picture is looked for
HEAVY_TAIL = (
    100.0  # interquartile ranges from the median: 1e-9999 for a normal law, usual beyond it
)
