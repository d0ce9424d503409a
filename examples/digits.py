"""Write scikit-learn's 1,797 scanned handwritten digits as JPEG class folders.

    python examples/digits.py DST

makes DST/train/<digit>/*.jpg (four fifths) and DST/val/<digit>/*.jpg (every fifth scan), 32 × 32 pixels.
Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    """Write the folders; existing files are replaced."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits.py DST")
    destination = Path(sys.argv[1])
    digits = load_digits()
    for i, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = destination / ("val" if i % 5 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        image.save(folder / f"{i:04d}.jpg", quality=95)
    print(f"{len(digits.images)} digits written to {destination}")


if __name__ == "__main__":
    main()
