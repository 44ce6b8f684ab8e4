"""Every threshold of training and judging a VAE, with its source."""

__all__ = [
    "ACTIVE_KL",
    "ACTIVE_VARIANCE",
    "ADAM_BLOCK",
    "ADAM_NUMBERS",
    "AGGREGATE_FLOW_ITEMS",
    "AGGREGATE_ITEMS",
    "AGGREGATE_PAIRS",
    "ANNEALED_OUTPUTS",
    "AVERAGE_STEPS",
    "BETA_LOG_SHAPE",
    "BUCKET_NUMBERS",
    "CALLBACK_SECONDS",
    "CATEGORICAL_LEVELS",
    "CEPSTRUM_LIMIT",
    "CLIPS_FOR_MOMENTS",
    "COLLAPSED_KL",
    "COLLAPSE_AFTER",
    "COMPONENTS",
    "CONTEXT_REACH",
    "CONTINUOUS_SERIES",
    "CONV_MIN_SIDE",
    "COUNT_LOG_DISPERSION",
    "COUNT_LOG_RATE",
    "COUNT_RARE_RATE",
    "DECODER_OUTPUTS",
    "DECODER_OUTPUTS_ON_GPU",
    "DRAWS_FOR_LOOSE",
    "ERRORS_SEEN",
    "EXPORT_CODES",
    "EXPORT_ERROR",
    "EXPORT_EXAMPLES",
    "EXPORT_ROUNDINGS",
    "EXPORT_SUMS",
    "FEW_IMAGES",
    "FEW_VALIDATION",
    "FLOAT32_RESOLUTION",
    "IMAGES_PER_BLOCK",
    "IMAGE_BATCH",
    "IMAGE_DECAY",
    "IMAGE_RATE",
    "INFORMATION_ITEMS",
    "LARGE_IMAGE_BATCH",
    "LOGISTIC_LOG_SCALE",
    "LOG_SD_LIMIT",
    "LOG_STEPS",
    "LOOKS_A_RUN",
    "LOOK_PASSES",
    "LOOK_STEPS",
    "LOOSE_DRAWS",
    "LOUDEST_SAMPLE",
    "MAX_LAYERS",
    "MAX_THREADS",
    "MAX_WIDTH",
    "MONITORED_IMAGES",
    "NAMED_COLUMNS",
    "NAMED_DIFFERENCES",
    "NAMED_LABELS",
    "NEIGHBOURS",
    "OVERFIT_ERRORS",
    "OVERFIT_LOOKS",
    "PATCH_COMPONENTS",
    "PATCH_NUMBERS",
    "PERIOD_LAGS",
    "PERIOD_TAPS",
    "REFIT_EXPANSION",
    "REFIT_RIDGE",
    "REFIT_SAMPLES",
    "RUN_FORMAT",
    "SETTLED_LOG_VARIANCE",
    "SETTLED_WIDTH",
    "SHORT_PASSES",
    "SHORT_SOUND_STEPS",
    "SHORT_STEPS",
    "SOUND_BATCH",
    "SOUND_CLIP_NORM",
    "SOUND_CONTEXT",
    "SOUND_FRAMES",
    "SOUND_ORDER",
    "SOUND_RATE",
    "SOUND_SHIFTS",
    "SOUND_WARMUP",
    "SOUND_WINDOWS",
    "TEST_STEPS",
    "THREADS_GAIN",
    "TRIAL_DRAWS",
    "TRIAL_ERRORS",
    "TRIAL_ROUNDINGS",
    "UNIT_SCALE_LEVELS",
    "WIDE_LOGIT",
    "WIDE_SHARE",
]

# Judging a model
ACTIVE_VARIANCE = 0.01  # of E_q[z_d|x] over x: Burda, Grosse and Salakhutdinov (2016), section 5.2
ACTIVE_KL = 0.1  # nats of mean KL(q(z_d|x) ‖ p(z_d)): benchmarks/active_units.py, a sweep over β
COLLAPSED_KL = 0.5  # nats in all dimensions together, of rate or I(x; z); below, z is of no use
LOOSE_DRAWS = 10.0  # below, an image's bound rests on a handful of draws
DRAWS_FOR_LOOSE = 20  # with fewer, all draws could count and an image still be called loose
SETTLED_LOG_VARIANCE = 1.0  # of log w over annealed chains: each is then about half a nat low
SETTLED_WIDTH = 0.5  # nats between the bounds on own data; differences between models are larger

# What a model can be
CONV_MIN_SIDE = 8  # pixels: smaller images have too few 2x2 patches for convolutions to pay
MAX_LAYERS, MAX_WIDTH = 32, 1_000_000  # a larger number is a typing error
PATCH_NUMBERS = 3000  # of an image, 32x32 in colour: benchmarks/colour_steps.py
COMPONENTS, PATCH_COMPONENTS = 5, 3  # of a logistic mixture: benchmarks/colour_steps.py
CONTEXT_REACH = 3  # pixels up, left and right that a context reads: benchmarks/neighbours.py
NEIGHBOURS = 4  # pixels before it on which one depends: benchmarks/neighbours.py
CATEGORICAL_LEVELS = 1024  # outputs a place: beyond it a free probability for each level is a waste
TRIAL_DRAWS = 4096  # by which the KL of a prior of one's own is checked: seconds at most
TRIAL_ERRORS = 6.0  # standard errors that a right one may be off: odds 2e-9
TRIAL_ROUNDINGS = 64  # of float32 in log p(z) and log q(z|x), each a sum over the latent dimensions
UNIT_SCALE_LEVELS = 256  # more levels than this work in units of the data's own spread
LOG_SD_LIMIT = 10.0  # e^±10 is far outside any useful posterior; beyond it exp() would overflow
BETA_LOG_SHAPE = (-5.0, 10.0)  # of a and b: nearly all mass at both ends, and nearly a binomial
COUNT_LOG_RATE = (-30.0, 20.0)  # rates from 1e-13 to 5e8: no count read is larger than 1.7e7
COUNT_LOG_DISPERSION = (-15.0, 15.0)  # θ: 99.9999 % zeros, and a Poisson law; beyond, lgamma rounds
COUNT_RARE_RATE = 1e-4  # the first rate, at least: of columns that are 0 in all training examples
CONTINUOUS_SERIES = 0.1  # of half a logit, below which three terms of the series have 13 digits
FLOAT32_RESOLUTION = 1e-3  # of a deviation: coarser float32 rounding makes a column a staircase
NAMED_COLUMNS = 5  # in one message
NAMED_DIFFERENCES = 4  # between two models, in one message
NAMED_LABELS = 12  # in one message, and with figures of their own in the remarks

# Sound
CLIPS_FOR_MOMENTS = 1000  # millions of samples for 561 numbers
ERRORS_SEEN = 160  # errors before, at 8 kHz the periods of voices from 50 Hz on
REFIT_SAMPLES = 16  # after which predictors are fitted again: every 8 gained 0.01 bits a sample
REFIT_EXPANSION = 0.98  # a lag: drawn clips grow without bound at 1; 0.005 bits a sample better
REFIT_RIDGE = 100.0  # levels²: the rounding of the last hundred samples, ten times
LOUDEST_SAMPLE = 8.0  # mean magnitudes, in moments: else onsets would be all that they see
# Settings of sound, compared on 160 held-out training clips of spoken digits (docs/sound.md)
SOUND_BATCH = 4  # clips a step: 14,000 samples of short words
SOUND_RATE = 3e-3  # the learning rate's peak
SOUND_WARMUP = 0.5  # share of the run over which the KL's weight rises; alone it changes nothing
SOUND_CLIP_NORM = 20_000.0  # of the gradient: nats a clip of thousands of samples
SOUND_FRAMES = 64  # a clip: 16 ms each in a second, the time in which speech changes little
SOUND_SHIFTS = 16  # powers of two that all samples of a clip may share: all of 16 bits
SOUND_ORDER = 32  # samples before, from which the next is predicted; FLAC's best is 32
SOUND_WINDOWS = (4, 16, 32, 128, 512)  # samples whose mean magnitudes say how loud it is
PERIOD_LAGS = (20, 160)  # samples from, and below: voices of 50 to 400 Hz at 8 kHz
PERIOD_TAPS = 7  # errors around one period before: the period is a fraction, and it moves
CEPSTRUM_LIMIT = 4.0  # order 16, stable: |c_n| ≤ 16/n, so that only c_1 to c_3 can be larger
SOUND_CONTEXT = (32,) * 7  # features of blocks, after a layer and after each of six convolutions
WIDE_LOGIT = -10.0  # of the wide component at first; at -5 drawn clips have too many loud clicks
WIDE_SHARE = 64.0  # of all levels, the least scale of one component: an onset out of silence
LOGISTIC_LOG_SCALE = (-5.0, 11.0)  # of levels: all mass on one level (1 − 1e-32), and all levels

# The loop and what it logs
IMAGE_BATCH, LARGE_IMAGE_BATCH = 64, 32  # images a step, below PATCH_NUMBERS and from there on
# Of the usual network on bits and 8-bit images below PATCH_NUMBERS: benchmarks/default_run.py
IMAGE_RATE, IMAGE_DECAY = 8e-3, 0.3  # the learning rate's peak; weight decay
FEW_IMAGES = (100, 5000)  # for training: of fewer a tenth says little; of more 2 min overfit little
LOOK_PASSES, LOOK_STEPS = 20, 100  # the more of them between looks: 300 images were best at pass 64
LOOKS_A_RUN = 10  # where that is more often, LOOK_STEPS apart: a look is 30 batches forward
FEW_VALIDATION = 0.1  # the share of them that is held out to pick the best weights on
SHORT_STEPS = 2000  # twice the steps, up to here, gained 2 % and more: benchmarks/colour_steps.py
SHORT_SOUND_STEPS = 400  # of spoken digits: 50, 100, 200, 400 steps: 7.79, 7.76, 7.68, 7.59 bits
SHORT_PASSES = 50  # over the training examples, from which steps are not what is missing
AVERAGE_STEPS = 10  # between updates of the averaged weights: a tenth of their cost, same figures
LOG_STEPS = 100  # between rows of metrics.jsonl, at most
TEST_STEPS = 500  # between looks at the test images, at least
MONITORED_IMAGES = 1000  # test images of such a look: 0.3 nats of error at a deviation of 10
OVERFIT_ERRORS = 4.5  # of a paired difference: by chance in less than one of 100,000 looks
OVERFIT_LOOKS = 2  # in a row that are so much worse than the best
COLLAPSE_AFTER = 0.1  # of the run, before which a small KL is no collapse yet
CALLBACK_SECONDS = 0.1  # between calls of progress, at least

# Export
EXPORT_EXAMPLES = 64  # on which ONNX is compared with PyTorch
EXPORT_ERROR = 1e-4  # of the largest value: 800 float32 roundings; 17 kinds of model had 1e-6
EXPORT_ROUNDINGS = 16.0  # times the error of PyTorch's own float32: other sums of the same terms
EXPORT_SUMS = 10.0  # roundings of PyTorch's log p(x|z): 17 kinds of model had 0.4 to 9.6
EXPORT_CODES = 1e-3  # share of quantised codes that may be rounded the other way

# The run folder
RUN_FORMAT = 2  # of config.json; in 1 neither it nor the weights had hashes

# The machine
DECODER_OUTPUTS = 800_000  # at once: what a core's cache holds
DECODER_OUTPUTS_ON_GPU = 2**26  # at once: a quarter of a GiB in float32, so that calls cost little
AGGREGATE_ITEMS = 2000  # of a mixture: N² densities a dimension, 2 s for 50 dimensions
INFORMATION_ITEMS = 500  # for I(x; z) beside an evaluation: 0.2 CPU s for 302 clips
AGGREGATE_FLOW_ITEMS = 300  # N² densities of a flow, each a pass for every dimension
AGGREGATE_PAIRS = 20_000  # densities of a dependent q at once: 20 numbers a dimension and pair
ANNEALED_OUTPUTS = 2_000_000  # at once, kept for the gradient: some 50 MB
ADAM_BLOCK = 4096  # numbers, as in step.c: threads take whole blocks, so rounding is the same
ADAM_NUMBERS = 1_000_000  # below it threads cost more to start than they save: 0.8 ms of one
IMAGES_PER_BLOCK = 100  # of one call of the progress callback of `evaluate`
BUCKET_NUMBERS = 2**22  # of a gradient, summed at once over processes: 16 MB (DDP's are 25 MB)
THREADS_GAIN = 1.2  # in speed of matrix products, below which more threads do not pay
MAX_THREADS = 4096  # in a config.json: more is damage
