"""How calibration data is read, as the user says it; light to import."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = "an .npz file, a folder of .npz, .npy or image files, a .zip of images, a .csv, .tsv, .txt or .jsonl file, "
KINDS += "module.py:function, or random"


@dataclass(frozen=True)
class DataOptions:
    """How calibration data is read. None means the default of the kind of data."""

    samples: int | None = None  # at most this many, before augmentation; None: 1024, and 64 of random numbers
    batch: int | None = None  # samples in a feed, where the graph leaves the batch free; None: 32
    preprocess: str | None = None  # imagenet, tf, unit or raw
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None  # height, width; None: the model's
    layout: str | None = None  # NCHW or NHWC; None: the model's
    augment: int = 1  # every image appears this often: once as it is, then flipped and cropped at random
    tokenizer: str | None = None
    max_tokens: int | None = None
    allow_random: bool = False
    seed: int = 0
