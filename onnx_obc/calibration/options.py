"""How calibration data is read, as the user says it; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..core.options import Doc

KINDS = "an .npz file, a folder of .npz, .npy or image files, a .zip of images, a .csv, .tsv, .txt or .jsonl file, "
KINDS += "module.py:function, or random"


@dataclass(frozen=True)
class DataOptions:
    """How calibration data is read. None means the default of the kind of data."""

    samples: Annotated[
        int | None,
        Doc("Read at most so many samples, evenly spread over the data. [default: 1024; 64 of random numbers]"),
    ] = None
    batch: Annotated[int | None, Doc("Samples in a feed, where the model leaves the batch free. [default: 32]")] = None
    preprocess: Annotated[Literal["imagenet", "tf", "unit", "raw"] | None, Doc("How images become inputs.")] = None
    mean: Annotated[
        tuple[float, ...] | None, Doc("Mean of every channel, of pixels in 0 … 1; instead of --preprocess.")
    ] = None
    std: Annotated[tuple[float, ...] | None, Doc("Standard deviation of every channel, of pixels in 0 … 1.")] = None
    size: Annotated[
        tuple[int, int] | None, Doc("Height and width of the images, where the model leaves them free.")
    ] = None
    layout: Annotated[
        Literal["NCHW", "NHWC"] | None,
        Doc("The order of the image dimensions, where it cannot be told from the model."),
    ] = None
    augment: Annotated[int, Doc("Versions of every image: as it is, then flipped and cropped at random.")] = 1
    tokenizer: Annotated[str | None, Doc("The tokenizer.json for text.")] = None
    max_tokens: Annotated[int | None, Doc("Cut texts to so many tokens. [default: 128]")] = None
    encoder: Annotated[str | None, Doc("The model that gives a decoder its encoder_hidden_states.")] = None
    allow_random: Annotated[bool, Doc("Accept --calib random; the result means nothing.")] = False
    seed: Annotated[int, Doc("Random seed.")] = 0
