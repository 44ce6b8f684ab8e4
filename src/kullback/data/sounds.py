"""Sound files, folders of them and `.npz` of clips, to integer samples `[N, 1, T]`.

Which to use: `read_sound_folder`, `read_sound_file` and `read_clips`. Samples are
16-bit integers; after the end of a short clip stands `PADDING`, which no
likelihood counts. Long files are cut into consecutive clips, so every sample of every file is in
exactly one clip. Files are decoded by soundfile and resampled by soxr (extra `audio`).
"""

import hashlib
import io
import wave
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kullback.core import DataError, import_extra, numpy_error, numpy_errors, require

from . import limits
from .arrays import label_texts, require_harmless
from .examples import Examples, Progress, plural
from .file_listing import bytes_of, files_under
from .limits import GREATEST_SAMPLE, LEAST_SAMPLE, PADDING

__all__ = [
    "PADDING",
    "SOUND_SUFFIXES",
    "Listening",
    "Sound",
    "holds_clips",
    "read_clips",
    "read_sound",
    "read_sound_file",
    "read_sound_folder",
    "wav_of",
]

SOUND_SUFFIXES = frozenset({".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
Samples = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Listening:
    """How sounds are to be read.

    rate: samples a second that they are brought to; None for the commonest among the files.
    clip: seconds of one clip. channels: "mix" (the mean of a file's channels) or "each" (every
    channel a clip of its own). length: of a trained model's clips in samples, instead of `clip`.
    step: of a trained model's levels, 1 for 16 bits. label: the array of labels of an `.npz`.
    """

    rate: int | None = None
    clip: float | None = None
    channels: str = "mix"
    length: int | None = None
    step: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        known = self.channels in ("mix", "each")
        require(known, "channels", "auto, mix or each for sound", repr(self.channels))
        low, high = limits.SAMPLE_RATES
        good = self.rate is None or (type(self.rate) is int and low <= self.rate <= high)
        require(good, "rate", f"samples a second from {low:,} to {high:,}", repr(self.rate))
        number = isinstance(self.clip, int | float) and 0 < self.clip <= limits.LONGEST_CLIP
        good = self.clip is None or number
        require(good, "clip", f"seconds, above 0 and at most {limits.LONGEST_CLIP}", self.clip)


@dataclass(frozen=True, slots=True)
class Sound:
    """One file: samples `[channels, n]` as 16-bit integers, its rate, and what was done.

    rounded: the file stores more than 16 bits, floats, or a lossy code. beyond: samples outside
    the 16-bit range, cut to its ends.
    """

    samples: Samples
    rate: int
    rounded: bool = False
    beyond: int = 0


def read_sound(data: bytes) -> Sound:
    """Decode one file's bytes.

    Args:
        data: A whole WAV, FLAC, OGG or MP3 file.

    Returns:
        Samples `[channels, n]`, int16.

    Raises:
        DataError: The reason why it cannot be read: empty, damaged, no sound file, without
            samples, too long, NaN or infinity.
        MissingExtraError: The extra `audio` is not installed.
    """
    soundfile = import_extra("soundfile", "audio")
    if not data:
        raise DataError("the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames * file.channels > limits.MAX_SAMPLES:
                raise DataError(f"more than {limits.MAX_SAMPLES:,} samples. Try: cut it in parts")
            whole, rate = file.subtype in ("PCM_16", "PCM_S8", "PCM_U8"), int(file.samplerate)
            if whole:
                samples, beyond = file.read(dtype="int16", always_2d=True).T, 0
            else:
                samples, beyond = _rounded(file)
    except DataError:
        raise
    except (RuntimeError, OSError, ValueError, TypeError, MemoryError) as error:
        reason = str(error).rpartition(": ")[2].strip(" .") or type(error).__name__
        raise DataError(f"not a WAV, FLAC, OGG or MP3 file, or damaged: {reason}") from error
    if samples.size == 0:
        raise DataError("no samples in it")
    if missing := _missing_bytes(data):
        raise DataError(f"cut off: {missing:,} bytes of its samples are missing")
    low, high = limits.SAMPLE_RATES
    if not low <= rate <= high:
        raise DataError(f"{rate:,} samples a second; {low:,} to {high:,} are read")
    return Sound(samples, rate, rounded=not whole, beyond=beyond)


def _rounded(file: Any) -> tuple[Samples, int]:
    """Read floats a block at a time, rounded to 16 bits: hours of silence are a small file."""
    blocks, beyond = [np.empty((file.channels, 0), np.int16)], 0
    while len(block := file.read(limits.SOUND_BLOCK, dtype="float64", always_2d=True)):
        levels, outside = _to_integers(block.T)
        blocks.append(levels)
        beyond += outside
    return np.concatenate(blocks, axis=1), beyond


def _missing_bytes(data: bytes) -> int:
    """Return how many bytes of a WAV file's samples are missing; a decoder reads what is there.

    Writers to a pipe do not know the size and put a large one.
    """
    at = 12 if data[:4] == b"RIFF" and data[8:12] == b"WAVE" else len(data)
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            return max(0, at + 8 + size - len(data)) if size < limits.UNKNOWN_SIZE else 0
        at += 8 + size + size % 2
    return 0


def _to_integers(samples: Samples) -> tuple[Samples, int]:
    """Round floats, 1.0 full scale, to 16 bits; count those outside, which become the ends."""
    if not np.isfinite(samples).all():
        raise DataError("NaN or infinity in its samples")
    if (peak := float(abs(samples).max())) > limits.GREATEST_FLOAT:
        hint = "integers as int16, or floats over 32,768"
        raise DataError(f"floats up to {peak:,.6g}, where full scale is 1. Try: {hint}")
    levels = np.rint(samples.astype(np.float64) * -LEAST_SAMPLE)
    outside = (levels < LEAST_SAMPLE) | (levels > -LEAST_SAMPLE)  # +1.0 itself is full scale
    beyond = int(outside.sum())
    return levels.clip(LEAST_SAMPLE, GREATEST_SAMPLE).astype(np.int16), beyond


def read_sound_folder(
    folder: Path, how: Listening | None = None, progress: Progress | None = None
) -> Examples:
    """Read every sound file under `folder` as clips `[N, 1, T]`, in the order of their paths.

    `train/` and `test/` sub-folders, where both exist, are the split; sounds beside them are left
    out. All clips of a file have its digest, so they are on one side of a split.

    Args:
        folder: With WAV, FLAC, OGG or MP3 files at any depth.
        how: Rate, length and channels.
        progress: Called with (done, total) files.

    Returns:
        The clips; what could not be read is in `skipped`, what was done in `notes`.

    Raises:
        DataError: No sounds, or none that can be read.
        MissingExtraError: The extra `audio` is not installed.
    """
    paths, others = files_under(folder, SOUND_SUFFIXES)
    notes: list[str] = []
    divided = (folder / "train").is_dir() and (folder / "test").is_dir()
    if divided:
        inside = [p for p in paths if p.relative_to(folder).parts[0] in ("train", "test")]
        if beside := len(paths) - len(inside):
            notes.append(f"{plural(beside, 'sound')} outside train/ and test/ left out")
        paths = inside
    if not paths:
        kinds = ", ".join(f"{n:,} {suffix}" for suffix, n in others.most_common(5))
        raise DataError(f"{folder}: no WAV, FLAC, OGG or MP3 files found; it holds {kinds or '-'}")
    examples = _read_files(folder, paths, how or Listening(), progress)
    if left := sum(n for suffix, n in others.items() if suffix not in SOUND_SUFFIXES):
        notes.append(f"{plural(left, 'file')} of other types left out")
    examples.notes[:0] = notes
    if divided:
        examples.split = "train/ and test/ folders"
        examples.is_test = np.array([name.startswith("test/") for name in examples.names])
    return examples


def read_sound_file(path: Path, how: Listening | None = None) -> Examples:
    """Read a single sound file as clips `[N, 1, T]`; `DataError` when it cannot be read."""
    return _read_files(path.parent, [path], how or Listening(), None)


def _read_files(
    folder: Path, paths: list[Path], how: Listening, progress: Progress | None
) -> Examples:
    """Decode every file, name what cannot be read, and cut the rest into clips."""
    import_extra("soundfile", "audio")
    sounds: list[Sound] = []
    names, digests, skipped = [], [], []
    for done, path in enumerate(paths, start=1):
        name = path.relative_to(folder).as_posix()
        try:
            data = bytes_of(path)
            sounds.append(read_sound(data))
        except DataError as error:
            skipped.append((name, str(error)))
        else:
            names.append(name)
            digests.append(hashlib.sha256(data).digest())
        if progress is not None:
            progress(done, len(paths))
    if not sounds:
        reasons = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        raise DataError(f"{folder}: no sound of {len(paths):,} can be read. {reasons}")
    return _clips(sounds, names, digests, skipped, how)


def read_clips(path: Path, how: Listening | None = None) -> Examples:
    """Read an `.npz` of clips laid end to end.

    `samples` `[total]` holds integers of 16 bits or floats in −1..1; clip i is
    samples[offset[i] : offset[i+1]], `offset` `[n + 1]`. Where they are there, `rate` (one number)
    is the rate, and `test` `[n]` (0 or 1) is the split; `how` may name an array of labels `[n]`.
    Without `rate`, that of `how` is taken for the file's own, else 8,000 samples a second.

    Args:
        path: The file.
        how: Rate, length and channels.

    Returns:
        Clips `[N, 1, T]`, as of a folder with one file a clip.

    Raises:
        DataError: Damage, other names, shapes or dtypes, offsets that do not rise.
    """
    how = how or Listening()
    arrays = _arrays_of(path, how.label)
    if missing := [name for name in ("samples", "offset") if name not in arrays]:
        found = ", ".join(arrays) or "none of its names"
        raise DataError(f"{path}: expected arrays samples and offset; no {missing[0]} in {found}")
    samples, offset = arrays["samples"], arrays["offset"]
    if samples.ndim != 1 or samples.dtype.kind not in "iuf":
        found = f"{samples.dtype} {list(samples.shape)}"
        raise DataError(f"{path}: samples: expected 16-bit integers or floats [total]; got {found}")
    good = offset.ndim == 1 and offset.dtype.kind in "iu" and len(offset) > 1
    good = good and int(offset[0]) >= 0 and int(offset[-1]) <= len(samples)
    good = good and bool((np.diff(offset.astype(np.int64)) >= 0).all())
    if not good:
        raise DataError(f"{path}: offset: expected rising integers [n + 1] within the samples")
    if how.label and how.label not in arrays:
        raise DataError(f"{path}: expected an array {how.label!r} of labels; got none")
    rate, notes = _rate_of(arrays, how, path)
    names = [f"clip[{i}]" for i in range(len(offset) - 1)]
    kept, sounds, skipped = [], [], []
    for i, name in enumerate(names):
        try:
            sounds.append(_of_array(samples[int(offset[i]) : int(offset[i + 1])], rate))
            kept.append(i)
        except DataError as error:
            skipped.append((name, str(error)))
    if not sounds:
        raise DataError(f"{path}: no clip of {len(names):,} can be used. {skipped[0][1]}")
    digests = [hashlib.sha256(sound.samples.tobytes()).digest() for sound in sounds]
    examples = _clips(sounds, [names[i] for i in kept], digests, skipped, how)
    examples.notes[:0] = notes
    if "test" in arrays:
        flags = arrays["test"]
        if flags.shape != (len(names),) or not np.isin(flags, (0, 1)).all():
            raise DataError(f"{path}: test: expected one flag, 0 or 1, for each clip")
        of_name = {names[i]: bool(flags[i]) for i in kept}
        examples.is_test = np.array([of_name[_file_of(name)] for name in examples.names])
        examples.split = "test of the file"
    if how.label:
        texts = label_texts(arrays[how.label], len(names), f"{path}: {how.label}")
        text_of = dict(zip(names, texts, strict=True))
        examples.labels = [text_of[_file_of(name)] for name in examples.names]
    return examples


def holds_clips(path: Path) -> bool:
    """Say whether an `.npz` holds `samples` and `offset`; False for one that cannot be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return {"samples", "offset"} <= set(loaded.files)
    except numpy_errors():
        return False


def _arrays_of(path: Path, label: str) -> dict[str, Samples]:
    wanted = ("samples", "offset", "rate", "test", label)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            found = [name for name in wanted if name in loaded.files]
            require_harmless(path, loaded.zip, [f"{name}.npy" for name in found])
            return {name: np.asarray(loaded[name]) for name in found}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except numpy_errors() as error:
        raise DataError(f"{path}: damaged or no NumPy file ({numpy_error(error)})") from error


def _rate_of(arrays: dict[str, Samples], how: Listening, path: Path) -> tuple[int, list[str]]:
    if "rate" not in arrays:
        if how.rate is not None:
            return how.rate, []
        rate = limits.USUAL_RATE
        return rate, [f"no rate in the file: taken for {rate:,} samples a second"]
    low, high = limits.SAMPLE_RATES
    stored = arrays["rate"]
    if (
        stored.size != 1
        or stored.dtype.kind not in "iuf"
        or not low <= float(stored.item()) <= high
    ):
        raise DataError(f"{path}: rate: expected one number from {low:,} to {high:,}")
    return round(float(stored.item())), []


def _of_array(samples: Samples, rate: int) -> Sound:
    if samples.size == 0:
        raise DataError("no samples in it")
    if samples.dtype.kind == "f":
        rounded, beyond = _to_integers(samples[None])
        return Sound(rounded, rate, rounded=True, beyond=beyond)
    low, high = int(samples.min()), int(samples.max())
    if low < LEAST_SAMPLE or high > GREATEST_SAMPLE:
        raise DataError(f"expected 16-bit integers; got {low} to {high}")
    return Sound(samples[None].astype(np.int16), rate)


def _clips(
    sounds: list[Sound],
    names: list[str],
    digests: list[bytes],
    skipped: list[tuple[str, str]],
    how: Listening,
) -> Examples:
    """Bring sounds to one rate and one channel, cut them into clips, and say what was done."""
    notes = _doubts(sounds, names)
    rate = how.rate or _commonest([sound.rate for sound in sounds])
    parts: list[Samples] = []
    part_names: list[str] = []
    part_digests: list[bytes] = []
    for sound, name, digest in zip(sounds, names, digests, strict=True):
        for channel, samples in enumerate(_channels(sound, how)):
            parts.append(_resampled(samples, sound.rate, rate))
            many = how.channels == "each" and len(sound.samples) > 1
            part_names.append(f"{name}#{channel + 1}" if many else name)
            part_digests.append(digest)
    notes += _what_was_done(sounds, rate, how)
    step = how.step or _common_step(parts)
    if how.step is None and step > 1:
        notes.append(f"all samples are multiples of {step}: modelled as {65_536 // step:,} levels")
    length = how.length or _clip_length(parts, rate, how, notes)
    rows = [(part, start) for part, one in enumerate(parts) for start in range(0, len(one), length)]
    if len(rows) * length > limits.MAX_SAMPLES:
        raise DataError(
            f"{len(rows):,} clips of {length:,} samples: more than {limits.MAX_SAMPLES:,} in "
            "memory. Try: a lower --rate, a shorter --clip, or fewer files"
        )
    values = np.full((len(rows), 1, length), PADDING, np.int32)
    for row, (part, start) in zip(values, rows, strict=True):
        piece = parts[part][start : start + length]
        row[0, : len(piece)] = piece
    _require_step(values, step)
    cut = sum(len(one) > length for one in parts)
    if cut:
        notes.append(f"{plural(cut, 'sound')} longer than a clip, cut into consecutive clips")
    if short := int((values[:, 0, -1] == PADDING).sum()):
        notes.append(f"{plural(short, 'clip')} padded at the end; no figure counts the padding")
    labels = [
        part_names[part] if len(parts[part]) <= length else f"{part_names[part]}@{start // length}"
        for part, start in rows
    ]
    found = Examples(values, labels, [part_digests[part] for part, _ in rows], skipped=skipped)
    found.split, found.notes = "files by SHA-256", notes
    found.sound = {"rate": rate, "step": step, "clip": length, "real": _real_samples(values)}
    return found


def _real_samples(values: Samples) -> int:
    return int((values != PADDING).sum())


def _file_of(name: str) -> str:
    """Return the name of the file that a clip was cut from."""
    return name.partition("@")[0].partition("#")[0]


def _commonest(rates: list[int]) -> int:
    counts = Counter(rates)
    return min(counts, key=lambda rate: (-counts[rate], rate))


def _channels(sound: Sound, how: Listening) -> list[Samples]:
    if how.channels == "each" or len(sound.samples) == 1:
        return list(sound.samples)
    return [np.rint(sound.samples.mean(0, dtype=np.float64)).astype(np.int16)]


def _resampled(samples: Samples, before: int, after: int) -> Samples:
    if before == after:
        return samples
    soxr = import_extra("soxr", "audio")
    there = soxr.resample(samples.astype(np.float64), before, after, quality="HQ")
    if len(there) == 0:  # shorter than one sample at the new rate
        there = samples[:1].astype(np.float64)
    levels: Samples = np.rint(there).clip(LEAST_SAMPLE, GREATEST_SAMPLE).astype(np.int16)
    return levels


def _common_step(parts: list[Samples]) -> int:
    """Return the largest power of two that divides all samples: 256 for files of 8 bits."""
    used = 0
    for part in parts:
        used |= int(np.bitwise_or.reduce(part.astype(np.int64)))
    return min(1 << 12, used & -used) if used else 1


def _require_step(values: Samples, step: int) -> None:
    if step > 1 and (values % step).any():
        raise DataError(
            f"expected samples that are multiples of {step}, as the model's are; got others"
        )


def _clip_length(parts: list[Samples], rate: int, how: Listening, notes: list[str]) -> int:
    """Return samples a clip: as asked, else a second or the longest sound, whichever is less."""
    if how.clip is not None:
        return max(1, round(how.clip * rate))
    longest = max(len(part) for part in parts)
    length = min(round(limits.USUAL_CLIP * rate), longest)
    notes.append(f"no clip length was given: {length / rate:.3g} s, {plural(length, 'sample')}")
    return length


def _doubts(sounds: list[Sound], names: list[str]) -> list[str]:
    """Name what is silent or clipped: it is kept, but its figures mean something else."""
    silent = [n for s, n in zip(sounds, names, strict=True) if s.samples.min() == s.samples.max()]
    clipped = [n for s, n in zip(sounds, names, strict=True) if _is_clipped(s)]
    found = {"silent (one value throughout)": silent, "clipped (full scale several times)": clipped}
    return [
        f"{plural(len(who), 'sound')} {what}: {_listed(who)}" for what, who in found.items() if who
    ]


def _is_clipped(sound: Sound) -> bool:
    at_ends = (sound.samples == LEAST_SAMPLE) | (sound.samples == GREATEST_SAMPLE)
    runs = at_ends[:, 1:] & at_ends[:, :-1]
    silent = sound.samples.min() == sound.samples.max()
    return not silent and (int(runs.sum()) >= limits.CLIPPED_PAIRS or sound.beyond > 0)


def _listed(names: list[str]) -> str:
    more = len(names) - limits.NAMED_SOUNDS
    return ", ".join(names[: limits.NAMED_SOUNDS]) + (f" and {more:,} more" if more > 0 else "")


def _what_was_done(sounds: list[Sound], rate: int, how: Listening) -> list[str]:
    others = Counter(sound.rate for sound in sounds if sound.rate != rate)
    notes = [
        f"{plural(count, 'sound')} resampled from {before:,} to {rate:,} samples a second"
        for before, count in sorted(others.items())
    ]
    many = sum(len(sound.samples) > 1 for sound in sounds)
    if many:
        done = "each channel a clip of its own" if how.channels == "each" else "mixed down to one"
        notes.append(f"{plural(many, 'sound')} of several channels, {done}")
    if rounded := sum(sound.rounded for sound in sounds):
        notes.append(
            f"{plural(rounded, 'sound')} stored as other than 16-bit integers, rounded to 16"
        )
    return notes


def wav_of(samples: Samples, rate: int) -> bytes:
    """Return a mono 16-bit WAV file of samples `[n]`; no extra is needed to write one.

    Args:
        samples: Integers of 16 bits.
        rate: Samples a second.

    Returns:
        The file's bytes.

    Example:
        >>> wav_of(np.zeros(8, np.int16), 8000)[:4]
        b'RIFF'
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples).astype("<i2").tobytes())
    return buffer.getvalue()
