"""Every threshold of the reports, with what set it: sizes, what is drawn, how figures are printed.

None of them changes a measured value; they choose what is shown and how.
"""

__all__ = [
    "CRISP",
    "CURVE_POINTS",
    "DECODED_BEFORE",
    "DENSITY_DRAWN",
    "DOTTED_POINTS",
    "DRAWN_GROUPS",
    "DRIFT_BYTES",
    "EQUAL_BITS",
    "FIT_ENTRIES",
    "GRID_LETTERS",
    "KL_BARS",
    "LABEL_LETTERS",
    "LARGE",
    "LATENT_REACH",
    "LIKELY_DEPTH",
    "LOUDNESS_RANGE",
    "MARK_GAP",
    "MASS_OUTSIDE",
    "NAME_LETTERS",
    "NO_VARIANCE",
    "OUTCOMES",
    "PAGE_BYTES",
    "PAGE_GROUPS",
    "PAGE_TOKENS",
    "PUSH_REACH",
    "RATIO_ROUNDING",
    "SMALL",
    "SOUND_BYTES",
    "SOUND_PAGE_BYTES",
    "SPECTROGRAM_BANDS",
    "SPECTROGRAM_FRAMES",
    "TABLE_ROWS",
    "TAIL_REACH",
    "TERMINAL_GROUPS",
    "WHOLE_EPOCHS",
    "WHOLE_ERROR",
    "WORD_BITS",
    "WORST_TOKENS",
]

# The page of a run
PAGE_BYTES = 1_000_000  # below what one e-mail or chat message will carry
CRISP = 320  # pixels: narrower pictures are shown enlarged, with their pixels as squares
CURVE_POINTS = 400  # of a learning curve: about one a pixel of its width
DOTTED_POINTS = 30  # a curve of fewer readings shows each of them as a dot
KL_BARS = 256  # latent dimensions drawn: with more a bar is narrower than a pixel
MARK_GAP = 0.15  # of the axis between marks of the clock: the width of "1.5 min" and a space
LATENT_REACH = 2.5  # standard deviations of the codes: 98.8 % of a normal distribution's mass
NO_VARIANCE = 1e-12  # of the codes: the square of float32's rounding, 1e-7, with room
WHOLE_EPOCHS = 10  # from here epochs are printed as whole numbers
SOUND_PAGE_BYTES = 2_000_000  # of a page that plays clips
SOUND_BYTES = 400_000  # of each of its three rows of players, in base64
SPECTROGRAM_BANDS, SPECTROGRAM_FRAMES = 128, 128  # pixels, at most one band more and few frames
LOUDNESS_RANGE = 70.0  # decibels from black to white: from speech to the hiss between words

# The page of a drift report
DRIFT_BYTES = 1_600_000  # of text with its drift: the page then stays below 2 MB
PAGE_TOKENS = 20_000  # shown: some 40 pages of a book
WORST_TOKENS = 15  # listed
DECODED_BEFORE = 6  # tokens decoded before a new one: no character has more, spaces depend on one

# Numbers and labels in text
SMALL, LARGE = 0.01, 1e6  # outside, a figure is printed in scientific notation
WHOLE_ERROR = 10  # a relative error from here on has three digits, not two decimals
TABLE_ROWS = 16  # outcomes listed one by one: what fits a terminal with the rest of the text
NAME_LETTERS = 20  # of an outcome's name in a table
LABEL_LETTERS = 40  # a longer name of P or Q is left out of a legend
WORD_BITS = 14  # a longer code word is cut in a table
RATIO_ROUNDING = 1e-15  # standard deviation of q/p: four ulps of float64, P and Q are equal
EQUAL_BITS = 1e-9  # relative: code lengths and means this close are equal, far above rounding

# Pictures of divergences and fits
OUTCOMES = 4000  # of a discrete distribution drawn one by one: several a pixel
TAIL_REACH = 8.0  # quartile distances from the quartiles beyond which tails are not drawn
GRID_LETTERS = 300  # of a grid's description in a signature: longer ones are in a file beside it
FIT_ENTRIES = 6  # parameters in a matrix of pairs: more are too small to read
BAR_LEVEL = 0.01  # probability that a bar of a histogram of ranks leaves the grey
LIKELY_DEPTH = 9.0  # nats below a density's peak that are drawn: 1e-4 of its height
DENSITY_DRAWN = 1e-2  # of the highest density: where a drawing in text begins and ends
MASS_OUTSIDE = 1e-6  # of q outside the box: its ELBO is off by less than the four digits shown
PUSH_REACH = 6.0  # nats of log policy/ref either way: a factor of 400

# Logged log-probabilities
TERMINAL_GROUPS = 40  # lines of a table by groups: what fits a terminal; the JSON has all
PAGE_GROUPS = 2000  # rows on the page: with more it is larger than an e-mail will carry
DRAWN_GROUPS = 400  # of a divergence against its groups: about one a pixel
