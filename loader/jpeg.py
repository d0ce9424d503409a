"""JPEG decoding on the CPU: only the window that a crop needs, where libjpeg-turbo 3 is at hand.

Its entropy decoder has to walk through everything above the window, but colour conversion, upsampling and the inverse
DCT, half of the work, are done for the window alone. The PyPI package `turbojpeg` brings that library; its own Python
interface cannot crop, so the few functions that are needed are called by ctypes, which releases the GIL. Elsewhere
simplejpeg decodes whole images. Pixels are the same, bit by bit.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import io
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg

from loader.reader import Encoded

_log = logging.getLogger("feedline.loader")
Image = npt.NDArray[np.uint8]

# turbojpeg.h of libjpeg-turbo 3
_DECOMPRESS, _RGB = 1, 0
_SUBSAMPLING, _WIDTH, _HEIGHT = 4, 5, 6  # tj3Get's parameters
_MCU_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1


class _Region(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class Decoder:
    """Decodes for one thread. The memory it hands out is overwritten by its next call."""

    def __init__(self) -> None:
        self._library = _library()
        self._handle = self._library.tj3Init(_DECOMPRESS) if self._library is not None else None
        self._scratch = np.empty(0, np.uint8)

    def __del__(self) -> None:
        """Free the library's memory."""
        if self._library is not None and self._handle:
            self._library.tj3Destroy(self._handle)

    def window(self, encoded: Encoded, top: int, left: int, height: int, width: int) -> Image:
        """Pixels of a window, uint8 [height, width, 3], not dense.

        What the fast decoder has any objection to, be it a warning, is decided by Pillow: what it decodes, torchvision
        and timm train on.

        Raises:
            ValueError: it does not decode, or the window does not lie in the image.
        """
        pixels = self._fast(encoded, top, left, height, width)
        if pixels is not None:
            return pixels
        whole = _by_pillow(encoded)
        if left + width > whole.shape[1] or top + height > whole.shape[0]:
            raise ValueError(f"its JPEG has {whole.shape[1]} × {whole.shape[0]} pixels, the index says more")
        return whole[top : top + height, left : left + width]

    def _fast(self, encoded: Encoded, top: int, left: int, height: int, width: int) -> Image | None:
        """The window, None where there is anything unusual about it."""
        if self._library is None:
            return _whole(encoded, top, left, height, width)
        library, address, size = self._library, encoded.ctypes.data, encoded.size
        if library.tj3DecompressHeader(self._handle, address, size):
            self._give_up()
            return None
        image_width, image_height = (library.tj3Get(self._handle, what) for what in (_WIDTH, _HEIGHT))
        block = _MCU_WIDTH.get(library.tj3Get(self._handle, _SUBSAMPLING))
        if block is None or left + width > image_width or top + height > image_height:
            return None
        # A block more on both sides: upsampling the chroma of a border pixel looks at its neighbours.
        first = max(0, left - block) // block * block
        last = min(image_width, left + width + block)
        region = _Region(first, top, last - first, height)
        if library.tj3SetCroppingRegion(self._handle, region):
            self._give_up()
            return None
        pixels = self._memory(height * region.w * 3).reshape(height, region.w, 3)
        if library.tj3Decompress8(self._handle, address, size, pixels.ctypes.data, region.w * 3, _RGB):
            self._give_up()
            return None
        return pixels[:, left - first : left - first + width]

    def _give_up(self) -> None:
        """Start afresh: what a handle remembers of a broken image would spoil the next ones."""
        assert self._library is not None
        self._library.tj3Destroy(self._handle)
        self._handle = self._library.tj3Init(_DECOMPRESS)

    def _memory(self, size: int) -> Image:
        if self._scratch.size < size:
            self._scratch = np.empty(size, np.uint8)
        return self._scratch[:size]


def _whole(encoded: Encoded, top: int, left: int, height: int, width: int) -> Image | None:
    """The window out of the whole image, None where there is anything unusual about it."""
    try:
        image: Image = simplejpeg.decode_jpeg(encoded, "RGB", strict=True)
    except (ValueError, KeyError):  # KeyError: a sampling that it does not know
        return None
    if left + width > image.shape[1] or top + height > image.shape[0]:
        return None
    return image[top : top + height, left : left + width]


def _by_pillow(encoded: Encoded) -> Image:
    try:
        with PIL.Image.open(io.BytesIO(encoded.tobytes())) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


@functools.cache
def _library() -> ctypes.CDLL | None:
    """libjpeg-turbo 3 out of the package `turbojpeg`; None where there is none."""
    spec = importlib.util.find_spec("turbojpeg")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    found = sorted(folder.glob("turbojpeg.libs/libturbojpeg*.so*")) if folder is not None else []
    if not found:
        _log.info("the package turbojpeg is not installed: JPEGs are decoded whole, at 3/4 of the speed")
        return None
    library = ctypes.CDLL(str(found[0]))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, result, arguments in (
        ("tj3Init", pointer, [number]),
        ("tj3Destroy", None, [pointer]),
        ("tj3DecompressHeader", number, [pointer, pointer, size]),
        ("tj3Get", number, [pointer, number]),
        ("tj3SetCroppingRegion", number, [pointer, _Region]),
        ("tj3Decompress8", number, [pointer, pointer, size, pointer, number, number]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
