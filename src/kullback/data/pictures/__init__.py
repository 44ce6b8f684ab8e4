"""Pictures: files and folders of them, decoded and brought to one size; image arrays resized.

Which to use: `read_folder` for a data set, `read_file` for one picture of it, `read_picture` and
`read_frames` for bytes, `fit_images` for arrays.

`folder`: which files are read, and the split; `many_files`: to one array, in processes; `decoding`:
one file; `direct_decoding`: PNG and JPEG files of pixels alone; `resizing`; `bit_depth`: of 16-bit
pictures; `cache`: decoded folders, kept; `workers`: processes.
"""

from .bit_depth import as_asked
from .cache import finish
from .decoding import Picture, header_size, is_background, read_frames, read_picture
from .folder import ARCHIVES, FRAME_SUFFIXES, SUFFIXES, read_file, read_folder
from .resizing import fit_images, fit_to

__all__ = [
    "ARCHIVES",
    "FRAME_SUFFIXES",
    "SUFFIXES",
    "Picture",
    "as_asked",
    "finish",
    "fit_images",
    "fit_to",
    "header_size",
    "is_background",
    "read_file",
    "read_folder",
    "read_frames",
    "read_picture",
]
