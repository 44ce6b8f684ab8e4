"""Every threshold of reading data, with its source."""

__all__ = [
    "BIT_DEPTH_FROM",
    "BYTE_LEVELS",
    "BYTE_MAX",
    "CACHED_FILES",
    "CLIPPED_PAIRS",
    "COUNTING_RULES",
    "DEEP_SAMPLE_BITS",
    "DEPTH_AS_STORED_RULES",
    "DISTINCT_VALUES",
    "FEW_STORED_LEVELS",
    "FEW_VALUES",
    "FILES_FOR_PROCESSES",
    "FILES_PER_TASK",
    "FLOAT32_STEPS",
    "GREATEST_FLOAT",
    "GREATEST_SAMPLE",
    "HEAVY_TAIL_RANGES",
    "INFLATION_FROM",
    "KEPT_MEMORY",
    "LEAST_SAMPLE",
    "LONGEST_CLIP",
    "MAX_CACHE_BYTES",
    "MAX_FILE_BYTES",
    "MAX_FRAMES",
    "MAX_FRAME_PIXELS",
    "MAX_INFLATION",
    "MAX_SAMPLES",
    "MAX_SIDE",
    "MEMORY_COPIES",
    "MOMENT_NUMBERS",
    "MOMENT_ROWS",
    "MOST_COUNT",
    "MOST_LABELS",
    "MOST_LEVELS",
    "MOST_WHOLE",
    "NAMED_COLUMNS",
    "NAMED_SIZES",
    "NAMED_SKIPS",
    "NAMED_SOUNDS",
    "NEARLY_EMPTY_BYTE",
    "NPY_HEADER",
    "NUMBERED_COLUMNS",
    "OPEN_SHARDS",
    "PADDING",
    "PIXELS_BETWEEN_LOOKS",
    "POINT_MASS_SHARE",
    "READING_PROCESSES",
    "READING_THREADS",
    "REPEATS_PER_LEVEL",
    "ROUNDINGS",
    "ROUNDINGS_A_LEVEL",
    "ROUNDINGS_IN_FLOAT64",
    "ROUNDING_SHARE_OF_STEP",
    "ROWS_FOR_DOUBTS",
    "ROWS_FOR_MEAN_PICTURE",
    "ROWS_MOVED",
    "SAMPLE_RATES",
    "SETTLED_SECONDS",
    "SHORTER_SIDE",
    "SOUND_BLOCK",
    "SOUND_LEVELS",
    "STORED_BLOCK_BYTES",
    "STORED_LOOK",
    "STORED_LOOK_BYTES",
    "STORED_TEST_BYTES",
    "SURPRISE_OF_GRID",
    "SURPRISE_OF_REPEATED_GRID",
    "TABLE_GROWTH",
    "TABLE_LOOK",
    "UNKNOWN_SIZE",
    "USUAL_CLIP",
    "USUAL_RATE",
    "WAITING_PARTS",
]

BYTE_LEVELS = 256  # of 8 bits
BYTE_MAX = 255  # the greatest of them

# Levels
MOST_LEVELS = 65_536  # a file stores at most 16 bits a value; finer grids are as good as continuous
ROUNDINGS_A_LEVEL = 4  # at most: train, test, 2 ways
DISTINCT_VALUES = ROUNDINGS_A_LEVEL * MOST_LEVELS
ROUNDINGS = (0.5, 1.0, 2.0, 4.0)  # eps of the largest value: stored once … three operations
ROUNDINGS_IN_FLOAT64 = 16.0  # where the search itself rounds as much as the data do
ROUNDING_SHARE_OF_STEP = 0.4  # of two values, at most; at ½ neighbouring levels touch
SURPRISE_OF_GRID = 25.0  # −log chance that other values lie on a grid: 65,536 tried, odds 1e-6
SURPRISE_OF_REPEATED_GRID = 7.0  # the same at odds 1e-3, besides the log of the grids tried
REPEATS_PER_LEVEL = 4  # few values, so often each on average, are levels: a density repeats none
BIT_DEPTH_FROM = 128  # more levels than this are a whole bit depth (8, 9, … 16 bits) with gaps
FEW_VALUES = 256  # unequally spaced values so few are levels by rank (a gamma curve of 8 bits)
ROWS_FOR_MEAN_PICTURE = 1000  # images in which a subtracted mean picture is looked for

COUNTING_RULES = 3  # of reading values, from which integers of too many levels are counts
MOST_COUNT = 2**24  # one of a cell's genes, a document's words; float32 holds all up to here

FLOAT32_STEPS = 256  # across a column's range, below which rounding to float32 makes levels of it
MOST_WHOLE = 2**53  # of a table's cell: float64 holds all up to here

TABLE_LOOK = 50  # rows of a table, from which it is found what stands between columns
NUMBERED_COLUMNS = 4  # a row of numbers 0, 1, 2, 3, …: names of columns, as pandas numbers them
TABLE_GROWTH = 12  # bytes of memory for each of a table, with MEMORY_COPIES: 36 for "0," as a list

# Labels
MOST_LABELS = 1000  # ImageNet's; more are names of items

# Doubts about a density of continuous values
POINT_MASS_SHARE = 0.05  # of rows at one value, from which a column has no density there
HEAVY_TAIL_RANGES = 100.0  # interquartile ranges from the median: 1e-9999 for a normal distribution
ROWS_FOR_DOUBTS = 100_000  # rows in which they are looked for: about a second
NAMED_COLUMNS = 5  # in one note

# Arrays
MEMORY_COPIES = 3  # of an array while it is read: the file's, joined, in the model's dtype
MAX_INFLATION = 200  # bytes from one of a .npz, chosen: deflate reaches 1,032; not measured on data
INFLATION_FROM = 2**26  # bytes of an array, below which any inflation is harmless

# Rows on disk
STORED_LOOK = 4096  # rows spread over all of them, from which it is decided how values are read
STORED_LOOK_BYTES = 2**26  # of those rows: 64 MB
STORED_BLOCK_BYTES = 2**22  # of rows read at once in the pass over all: 4 MB
STORED_TEST_BYTES = 2**29  # of test examples, which are held in memory
ROWS_MOVED = 256  # at once, within their memory: 3 MB of 64x64 in colour
OPEN_SHARDS = 128  # files open at once; systems allow 256 and more

# Moments
MOMENT_ROWS = 1024  # summed at once; fixed, so that sums are the same wherever the rows are
MOMENT_NUMBERS = 2**20  # of those rows: 8 MB as float64

# Pictures
MAX_FRAMES = 10_000  # of one file: seven minutes of an animation
MAX_FRAME_PIXELS = 2**28  # of all frames of one file, where they keep their size
PIXELS_BETWEEN_LOOKS = 8  # for colour, before every pixel is looked at: a 64th of them
READING_THREADS = 8  # chosen, not measured: the interpreter runs one thread at a time
READING_PROCESSES = 8  # at most, on as many cores: 60 MB of memory each
FILES_FOR_PROCESSES = 5_000  # from which they repay their start, 0.3 CPU seconds each
KEPT_MEMORY = 2**26  # of a process; glibc gives back 128 KB: small JPEGs then take twice as long
FILES_PER_TASK = 64  # of one thread: tens of milliseconds
CACHED_FILES = 1_000  # from which a folder is cached: fewer are decoded in about a second
MAX_CACHE_BYTES = 2**32  # of all cached folders: 350,000 colour pictures of 64x64
NPY_HEADER = 128  # bytes of a `.npy` file before the values of at most four axes (NEP 1)
WAITING_PARTS = 32  # of FILES_PER_TASK pictures that wait to be written: 25 MB of 64x64 in colour
SETTLED_SECONDS = 2.0  # since the last change of a file: the resolution of times on FAT
MAX_SIDE = 4096  # pixels asked for: 64 MB an image in float32
SHORTER_SIDE = 64  # pixels kept where no size is given: trains in minutes on a CPU
MAX_FILE_BYTES = 2**28  # of one picture: above, it is no picture to train on
NEARLY_EMPTY_BYTE = 32  # of 256: the upper byte of 16-bit colours that have at most 13 bits
DEPTH_AS_STORED_RULES = 4  # of reading values, from which a depth is looked for before resizing
FEW_STORED_LEVELS = 32  # below it 16-bit pictures are a mask or labels, not shades of 5 bits
DEEP_SAMPLE_BITS = 16  # of a colour sample, of which the upper 8 are read
NAMED_SIZES = 5  # in one message
NAMED_SKIPS = 20  # skipped files kept by name in a protocol

# Sounds
LEAST_SAMPLE, GREATEST_SAMPLE = -32_768, 32_767  # of 16 bits
GREATEST_FLOAT = 16.0  # of samples whose full scale is 1: 24 dB above; more are integers as floats
PADDING = -65_536  # after a clip's last sample; outside 16 bits, and exact in float32
SOUND_BLOCK = 2**20  # samples of each channel, read at once as floats: 8 MB
SOUND_LEVELS = 65_536  # of a sample: 16 bits
SAMPLE_RATES = 100, 768_000  # a second: what files can say and a clip can hold
UNKNOWN_SIZE = 0x7FFFF000  # of a WAV file's samples, written to a pipe: from here on (SoX, FFmpeg)
MAX_SAMPLES = 2**27  # of one file, and of all clips with their padding: 512 MB as 32-bit integers
USUAL_CLIP = 1.0  # seconds: a word or two
LONGEST_CLIP = 60  # seconds: longer, one z says little about each part
USUAL_RATE = 8_000  # of an .npz without one: the telephone's
CLIPPED_PAIRS = 3  # neighbours both at full scale from which a file is called clipped
NAMED_SOUNDS = 5  # silent or clipped, in one note
