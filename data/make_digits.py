"""Make data/digits/ from scikit-learn's copy of the UCI hand-written digits: the same bytes every time.

The folder is a DVC data version, so this script is the record of where its bytes come from rather than a
step of any run. To publish a changed version:

    python data/make_digits.py && dvc add data/digits && dvc push
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

README = """\
# UCI hand-written digits

- `images.npy`: uint8 [1797, 8, 8], 0 (background) to 16; each pixel counts the set pixels of a 4x4 block
  of a 32x32 bitmap.
- `labels.npy`: uint8 [1797], the digit, 0 to 9.

The test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998, <https://doi.org/10.24432/C50P49>, licensed under CC BY 4.0
(<https://creativecommons.org/licenses/by/4.0/>). Taken unchanged from `sklearn.datasets.load_digits` of
scikit-learn (<https://scikit-learn.org>) and stored as NumPy arrays by `data/make_digits.py`.
"""


def make(folder: Path) -> None:
    """Write images.npy, labels.npy and README.md into `folder`."""
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", digits.images.astype(np.uint8))
    np.save(folder / "labels.npy", digits.target.astype(np.uint8))
    (folder / "README.md").write_text(README, encoding="utf-8")


if __name__ == "__main__":
    make(Path(__file__).parent / "digits")
