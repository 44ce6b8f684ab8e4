"""Write a folder of plucked strings to try sound with: 400 WAV files of a quarter of a second.

    python examples/plucks.py plucks
    kullback train plucks --steps 400 --out plucks-run

Each is noise in a loop of a string's period that is averaged at every turn (Karplus and Strong
1983, "Digital synthesis of plucked-string and drum timbres"), so the pitch and the noise differ
from file to file. NumPy alone is needed to write them; to read them, the extra `audio`.
"""

import sys
from pathlib import Path

import numpy as np

from kullback.data import wav_of

RATE, SAMPLES, FILES = 8000, 2000, 400


def pluck(rng: np.random.Generator) -> np.ndarray:
    """Return one string, plucked after a short silence: int16 `[2000]`."""
    loop = rng.uniform(-1, 1, rng.integers(20, 80))  # 100 to 400 Hz
    begin = rng.integers(100, 500)
    sound = np.zeros(SAMPLES)
    for t in range(begin, SAMPLES):
        at = (t - begin) % len(loop)
        sound[t] = loop[at]
        loop[at] = 0.498 * (loop[at] + loop[(at + 1) % len(loop)])
    loud = 10 ** rng.uniform(3, 4.2)
    return np.rint(loud * sound + rng.normal(0, 2, SAMPLES)).clip(-32768, 32767).astype(np.int16)


def main() -> None:
    """Write the files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "plucks")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        (folder / f"pluck-{number:03d}.wav").write_bytes(wav_of(pluck(rng), RATE))


if __name__ == "__main__":
    main()
