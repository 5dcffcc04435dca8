"""Arrays as pictures: values that users log as an image, from any library."""

from __future__ import annotations

from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]
Image = Any
"""An image of PIL, NumPy, torch or MLflow."""


def array(value: Image) -> Numbers:
    """Return the numbers of an array, a list or a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
    return np.asarray(value)


def picture(image: Image, axes: str | None = None) -> Image:
    """Return an image as a PIL image; `axes` names its dimensions, such as `CHW`; several images (N) go side by side.

    Without `axes` an array is (height, width[, channels]), a tensor (channels, height, width). Integers are 0..255,
    floats 0..1.
    """
    if hasattr(image, "to_pil"):
        return image.to_pil()
    if hasattr(image, "save"):
        return image
    from PIL.Image import fromarray

    pixels = array(image)
    if axes is None:
        axes = "CHW" if hasattr(image, "detach") and pixels.ndim == 3 else "NHWC"[-pixels.ndim :]
        axes = "HW" if pixels.ndim == 2 else axes
    pixels = np.transpose(pixels, [axes.index(axis) for axis in "NHWC" if axis in axes])
    if "N" in axes:
        pixels = np.concatenate(list(pixels), axis=1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype.kind == "f":
        pixels = np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255
    return fromarray(pixels.astype(np.uint8))


def histogram(values: object, bins: int) -> dict[str, object]:
    """Return the histogram of the finite numbers of an array, as plain values."""
    numbers = array(values).astype(float).ravel()
    finite = numbers[np.isfinite(numbers)]
    counts, edges = np.histogram(finite, bins=bins)
    known = (
        {"min": finite.min(), "max": finite.max(), "mean": finite.mean(), "std": finite.std()} if finite.size else {}
    )
    return {
        **{name: float(value) for name, value in known.items()},
        "not_finite": int(numbers.size - finite.size),
        "counts": counts.tolist(),
        "edges": edges.tolist(),
    }
