"""Calibration data from images: a folder, searched recursively, or a .zip; sorted by path.

An image becomes the input of a model with one input of rank 4 like this:

1. It is decoded as it is stored (no EXIF rotation) to grey, RGB or RGBA: 1, 3 or 4 channels, as the model has.
2. If it has exactly the model's height × width, nothing is resampled. Otherwise it is resized bilinearly (Pillow, with
   antialiasing), keeping its proportions, so that its short side is 256/224 of the model's (rounded; the long side is
   rounded down), and the centre is cut out. For a model that is not square, it is resized to just cover 256/224 of
   both sides.
3. `--preprocess` says how pixels 0 … 255 become values, in float32: `raw`: as they are; `unit`: x/255; `tf`:
   (x/255 − 0.5)/0.5; `imagenet`: (x/255 − mean)/std with the usual mean and std of ImageNet. `mean` and `std` replace
   those of the preset, and mean `unit` without one. A uint8 input takes raw pixels and needs nothing said.

Images in several folders are labelled: the class of an image is the place of its folder among all, in alphabetical
order. Labels serve metrics and a task loss alone: where the model's classes are others, or in another order, they are
wrong.

With `augment` N every image appears N times in succession: once as above, then with chance ½ flipped left to right,
and cut out at a random place; where nothing is resampled, it is first padded with black by an eighth (4 pixels of 32)
on every side. What is drawn depends on the seed, the image's number and the copy's alone.
"""

from __future__ import annotations

import difflib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.arrays import Array, Feed, Float32
from ...core.errors import CalibrationError, one_line
from ...core.files import read_regular
from ...core.plural import counted
from ...graph.model import InputSpec
from ..options import DataOptions
from ..samples import Samples, Shown
from ..thumbnails import thumbnail
from .feeds import deliver, plan_samples

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # Pillow knows formats that run other programs
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tf": ((0.5,), (0.5,)),
    "unit": ((0.0,), (1.0,)),
    "raw": None,
}


@dataclass(frozen=True)
class Preparation:
    """How an image becomes a model input. scale: (mean, std), each (channels,) or (1,) float32; None for raw pixels."""

    spec: InputSpec
    layout: str  # NCHW or NHWC
    channels: int
    height: int
    width: int
    scale: tuple[Float32, Float32] | None

    def array(self, image: Image.Image, rng: np.random.Generator | None) -> Array:
        """(C, H, W) or (H, W, C) of the input's type, of an image in the right mode; rng draws an augmented copy."""
        pixels = np.asarray(place(image, self.height, self.width, rng))
        pixels = pixels.reshape(self.height, self.width, self.channels)  # (H, W, C) uint8
        values: Array = pixels
        if self.scale is not None:
            mean, std = self.scale
            values = (pixels.astype(np.float32) / 255 - mean) / std
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)  # (C, H, W)
        return np.ascontiguousarray(values, dtype=self.spec.dtype)


def find(folder: Path) -> list[Path]:
    """The image files under a folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if _is_image(path.relative_to(folder).as_posix()))


def open_images(path: Path, inputs: list[InputSpec], options: DataOptions) -> Samples:
    """Samples of a folder or a .zip of images. Raises CalibrationError."""
    preparation = prepare(inputs, options)
    names, fetch = _folder(path) if path.is_dir() else _archive(path)
    if not names:
        raise CalibrationError(f"{path}: holds no image ({', '.join(SUFFIXES)}); give a folder or .zip that does")
    plan = plan_samples(len(names), f"images in {path}", inputs, options, copies=options.augment)

    def name_of(position: int) -> str:
        return f"{path}/{names[plan.order[position]]}"

    def load(position: int) -> Feed:
        number, copy = plan.order[position], position % options.augment
        rng = np.random.default_rng([options.seed, number, copy]) if copy else None
        image = _decode(fetch(names[number]), name_of(position), MODES[preparation.channels])
        return {preparation.spec.name: preparation.array(image, rng)}

    folders = [PurePosixPath(name).parent.as_posix() for name in names]
    classes = {folder: number for number, folder in enumerate(sorted(set(folders)))}

    def label(position: int) -> int:
        return classes[folders[plan.order[position]]]

    def shown(position: int) -> Shown:
        image = _decode(fetch(names[plan.order[position]]), name_of(position), MODES[preparation.channels])
        return Shown(image=thumbnail(place(image, preparation.height, preparation.width)))

    named = label if len(classes) > 1 else None
    return replace(deliver(plan, load, inputs, f"images of {path}", name_of, label=named), shown=shown)


def prepare(inputs: list[InputSpec], options: DataOptions) -> Preparation:
    """How images become the input of this model. Raises CalibrationError if that is not clear."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        listed = ", ".join(f"{spec.name} of rank {len(spec.shape)}" for spec in inputs)
        raise CalibrationError(
            f"images fit a model with one input of rank 4, but this one has {listed}; give arrays (.npz) or a function"
        )
    spec = inputs[0]
    layout = find_layout(spec, options)
    channels, height, width = (spec.shape[axis] for axis in ((1, 2, 3) if layout == "NCHW" else (3, 1, 2)))
    size = (height, width)
    if options.size is not None:
        if any(fixed not in (None, given) for fixed, given in zip(size, options.size, strict=True)):
            raise CalibrationError(
                f"--image-size {_words(options.size)} differs from the {_words(size)} of input {spec.name!r}; "
                "leave it out"
            )
        size = options.size
    if size[0] is None or size[1] is None:
        raise CalibrationError(
            f"input {spec.name!r} takes images of any size; give --image-size HEIGHT WIDTH, e.g. 224 224"
        )
    if min(size[0], size[1]) < 1:
        raise CalibrationError(f"--image-size {_words(size)}: height and width must be at least 1")
    channels = 3 if channels is None else channels
    return Preparation(spec, layout, channels, size[0], size[1], _scale(spec, channels, options))


def find_layout(spec: InputSpec, options: DataOptions) -> str:
    """NCHW or NHWC, by which dimension of an input of rank 4 can be channels. Raises CalibrationError."""
    can = {layout: spec.shape[axis] in (*MODES, None) for layout, axis in (("NCHW", 1), ("NHWC", 3))}
    if options.layout is not None:
        if options.layout not in can:
            raise CalibrationError(f"--layout {options.layout} is not known; give NCHW or NHWC")
        if not can[options.layout]:
            raise CalibrationError(
                f"--layout {options.layout} does not fit input {spec.name!r} of shape {spec.shape}: images have 1, "
                "3 or 4 channels; leave it out"
            )
        return options.layout
    fitting = [layout for layout in can if can[layout]]
    if len(fitting) == 2 and (spec.shape[1] is None) != (spec.shape[3] is None):
        fitting.remove("NCHW" if spec.shape[1] is None else "NHWC")
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise CalibrationError(
            f"input {spec.name!r} of shape {spec.shape} is no image: neither axis 1 nor axis 3 has 1, 3 or 4 channels; "
            "give arrays (.npz) or a function"
        )
    raise CalibrationError(f"input {spec.name!r} of shape {spec.shape} can be NCHW or NHWC; say which with --layout")


def _scale(spec: InputSpec, channels: int, options: DataOptions) -> tuple[Float32, Float32] | None:
    name, given = options.preprocess, options.mean is not None or options.std is not None
    if name is not None and name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PRESETS)}"
        raise CalibrationError(f"--preprocess {name} is not known; {hint}")
    if spec.dtype == np.uint8:
        if name not in (None, "raw") or given:
            raise CalibrationError(
                f"input {spec.name!r} takes uint8: raw pixels; leave out --preprocess, --mean and --std"
            )
        return None
    if spec.dtype.kind != "f":
        raise CalibrationError(
            f"input {spec.name!r} takes {spec.dtype.name}, and images are float or uint8; "
            "give arrays (.npz) or a function"
        )
    if name is None and not given:
        raise CalibrationError(
            "images need --preprocess, the same as in training: imagenet, tf, unit or raw (or --mean and --std); "
            "a wrong one calibrates for other inputs than the model will see"
        )
    preset = PRESETS[name or "unit"]
    if preset is None:
        if given:
            raise CalibrationError(
                "--preprocess raw leaves pixels 0 … 255 as they are; with --mean and --std, give unit"
            )
        return None
    mean, std = options.mean or preset[0], options.std or preset[1]
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise CalibrationError(
                f"--{what} has {counted(len(values), 'value')}{'' if given else f' in --preprocess {name}'}, but input "
                f"{spec.name!r} has {counted(channels, 'channel')}; give --{what} with {channels}"
            )
    if not all(value > 0 for value in std) or not np.isfinite((*mean, *std)).all():
        raise CalibrationError(f"--mean {_words(mean)} --std {_words(std)}: they must be finite, and std positive")
    return np.array(mean, np.float32), np.array(std, np.float32)


def _words(values: Sequence[float | None]) -> str:
    """As they are written on the command line."""
    return " ".join("any" if value is None else f"{value:g}" for value in values)


def place(image: Image.Image, height: int, width: int, rng: np.random.Generator | None = None) -> Image.Image:
    """The image at height × width: resized and cut out in the centre, or, with rng, as an augmented copy."""
    flip = rng is not None and rng.random() < 0.5
    if flip:
        image = ImageOps.mirror(image)
    if image.size != (width, height):
        image = image.resize(_cover(image.width, image.height, width, height), Image.Resampling.BILINEAR)
    elif rng is None:
        return image
    else:
        image = ImageOps.expand(image, (round(width / 8), round(height / 8)))
    spare_x, spare_y = image.width - width, image.height - height
    if rng is None:
        left, top = round(spare_x / 2), round(spare_y / 2)
    else:
        left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
    return image.crop((left, top, left + width, top + height))


def _cover(from_width: int, from_height: int, width: int, height: int) -> tuple[int, int]:
    """The (width, height) to resize to before the cut."""
    least_width, least_height = round(width * 256 / 224), round(height * 256 / 224)
    if least_height * from_width >= least_width * from_height:
        return max(least_width, least_height * from_width // from_height), least_height
    return least_width, max(least_height, least_width * from_height // from_width)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _folder(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    names = [each.relative_to(path).as_posix() for each in find(path)]

    def fetch(name: str) -> bytes:
        try:
            return read_regular(path / name)
        except OSError as error:
            raise CalibrationError(f"{path / name}: cannot be read ({error.strerror}); check the file") from error

    return names, fetch


def _archive(path: Path) -> tuple[list[str], Callable[[str], bytes]]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path}: cannot be read as a .zip ({error}); make or download it anew") from error
    names = sorted(name for name in archive.namelist() if _is_image(name))

    def fetch(name: str) -> bytes:
        try:
            return archive.read(name)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CalibrationError(f"{path}/{name}: cannot be unpacked ({error}); make or download it anew") from error

    return names, fetch


def _decode(data: bytes, where: str, mode: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode[0] in "IF":
                raise CalibrationError(f"{where}: has pixels of more than 8 bits ({image.mode}); convert it to 8 bits")
            return image.convert(mode)
    except UnidentifiedImageError as error:
        raise CalibrationError(
            f"{where}: is no image of a known format ({', '.join(FORMATS[:3])} …); remove or replace it"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CalibrationError(
            f"{where}: cannot be decoded ({one_line(error)}); remove or replace this image"
        ) from error
