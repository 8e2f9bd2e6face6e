"""Images from folders and .zip files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.readers.images import find_layout, place
from onnx_obc.calibration.samples import Samples
from onnx_obc.core.errors import CalibrationError
from onnx_obc.graph.model import InputSpec

FLOAT = np.dtype(np.float32)
SIZE = 8
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
NCHW = [InputSpec("x", FLOAT, (None, 3, SIZE, SIZE))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty PNG files in two folders, whose order by path is that of PIXELS."""
    root = tmp_path / "images"
    for i, pixels in enumerate(PIXELS):
        path = root / f"class{i // 10}" / f"{i:02}.{'png' if i % 2 else 'BMP'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / ".hidden.png").write_bytes(b"")
    (root / "readme.txt").write_text("no image")
    return root


def read_all(samples: Samples) -> np.ndarray:
    return np.concatenate([batch.feed["x"] for batch in samples.read(0, samples.count)])


ORDER = [*range(0, 20, 10), *(i + j for i in range(1, 10) for j in (0, 10))]  # ten hands of two


@pytest.mark.parametrize(
    ("preprocess", "mean", "std"),
    [("unit", 0.0, 1.0), ("tf", 0.5, 0.5), ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_presets(folder: Path, preprocess: str, mean: float, std: float) -> None:
    values = read_all(open_samples(folder, NCHW, DataOptions(preprocess=preprocess)))
    expected = (PIXELS[ORDER] / 255 - mean) / std
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_raw_and_mean_and_std(folder: Path) -> None:
    raw = read_all(open_samples(folder, NCHW, DataOptions(preprocess="raw")))
    np.testing.assert_array_equal(raw, PIXELS[ORDER].transpose(0, 3, 1, 2))
    named = open_samples(folder, NCHW, DataOptions(preprocess="raw")).part(2, 20).name_of
    assert named(0) == f"{folder}/class0/01.png" and named(17) == f"{folder}/class1/19.png"
    own = read_all(open_samples(folder, NCHW, DataOptions(mean=(0.1, 0.2, 0.3), std=(0.5,))))
    np.testing.assert_allclose(own, ((PIXELS[ORDER] / 255 - (0.1, 0.2, 0.3)) / 0.5).transpose(0, 3, 1, 2), atol=1e-6)
    mixed = read_all(open_samples(folder, NCHW, DataOptions(preprocess="tf", mean=(0.0,))))
    np.testing.assert_allclose(mixed, (PIXELS[ORDER] / 255 / 0.5).transpose(0, 3, 1, 2), atol=1e-6)


def test_zip_equals_folder(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("__MACOSX/class0/._00.png", b"")
        for path in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(path, path.relative_to(folder))
    options = DataOptions(preprocess="tf", augment=2)
    np.testing.assert_array_equal(
        read_all(open_samples(tmp_path / "images.zip", NCHW, options)), read_all(open_samples(folder, NCHW, options))
    )


@pytest.mark.parametrize(
    ("dtype", "shape", "options"),
    [
        (np.uint8, (None, 3, SIZE, SIZE), DataOptions()),
        (np.uint8, (None, SIZE, SIZE, 3), DataOptions()),
        (np.float16, (2, SIZE, None, 3), DataOptions(preprocess="raw", size=(SIZE, SIZE))),
        (np.float32, (None, None, None, 3), DataOptions(preprocess="raw", size=(SIZE, SIZE))),
        (np.float32, (None, None, None, None), DataOptions(preprocess="raw", size=(SIZE, SIZE), layout="NHWC")),
    ],
)
def test_types_and_layouts(folder: Path, dtype: type, shape: tuple[int | None, ...], options: DataOptions) -> None:
    values = read_all(open_samples(folder, [InputSpec("x", np.dtype(dtype), shape)], options))
    expected = PIXELS[ORDER] if shape[1] != 3 else PIXELS[ORDER].transpose(0, 3, 1, 2)
    assert values.dtype == dtype and values.flags.c_contiguous
    np.testing.assert_array_equal(values, expected)


def test_grey_and_rgba(folder: Path) -> None:
    grey = read_all(open_samples(folder, [InputSpec("x", FLOAT, (None, 1, SIZE, SIZE))], DataOptions(preprocess="raw")))
    np.testing.assert_array_equal(grey[0, 0], np.asarray(Image.fromarray(PIXELS[0]).convert("L")))
    rgba = read_all(open_samples(folder, [InputSpec("x", FLOAT, (None, 4, SIZE, SIZE))], DataOptions(preprocess="raw")))
    assert (rgba[:, 3] == 255).all()
    np.testing.assert_array_equal(rgba[:, :3], PIXELS[ORDER].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((256, 300), (256, 300)),
        ((100, 100), (256, 256)),
        ((333, 500), (256, 384)),
    ],
)
def test_resize_rule(size: tuple[int, int], resized: tuple[int, int]) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8))
    expected = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    expected = expected.crop((left, top, left + 224, top + 224))
    np.testing.assert_array_equal(np.asarray(place(image, 224, 224)), np.asarray(expected))


@pytest.mark.parametrize("size", [(100, 37), (37, 100), (16, 16), (1, 300)])
def test_resize_to_no_square_covers_it(size: tuple[int, int]) -> None:
    image = place(Image.new("RGB", size, (255, 255, 255)), 14, 28)
    assert image.size == (28, 14)
    assert np.asarray(image).min() == 255  # nothing of what lies outside the image is seen


def test_image_of_the_right_size_is_not_resampled() -> None:
    image = Image.fromarray(PIXELS[0])
    np.testing.assert_array_equal(np.asarray(place(image, SIZE, SIZE)), PIXELS[0])


def test_augment(folder: Path) -> None:
    options = DataOptions(preprocess="raw", augment=4)
    samples = open_samples(folder, NCHW, options)
    assert samples.count == 80
    values = read_all(samples)
    np.testing.assert_array_equal(values[::4], PIXELS[ORDER].transpose(0, 3, 1, 2))
    flips = 0
    for i in range(80):
        original = PIXELS[ORDER[i // 4]].transpose(2, 0, 1)
        padded = np.pad(original, ((0, 0), (1, 1), (1, 1)))
        crops = [padded[:, y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)]
        plain = any(np.array_equal(values[i], crop) for crop in crops)
        padded = np.pad(original[:, :, ::-1], ((0, 0), (1, 1), (1, 1)))
        crops = [padded[:, y : y + SIZE, x : x + SIZE] for y in range(3) for x in range(3)]
        flipped = any(np.array_equal(values[i], crop) for crop in crops)
        assert plain != flipped
        flips += flipped
    assert 15 < flips < 45  # of 60
    other = read_all(open_samples(folder, NCHW, DataOptions(preprocess="raw", augment=4, seed=1)))
    assert not np.array_equal(other, values)


def test_augmented_copies_depend_on_no_batch_and_no_selection(folder: Path) -> None:
    values = read_all(open_samples(folder, NCHW, DataOptions(preprocess="raw", augment=4)))
    again = open_samples(folder, NCHW, DataOptions(preprocess="raw", augment=4, batch=3))
    np.testing.assert_array_equal(read_all(again), values)
    np.testing.assert_array_equal(next(again.read(5, 8)).feed["x"], values[5:8])
    few = open_samples(folder, NCHW, DataOptions(preprocess="raw", augment=4, samples=10))
    assert few.count == 40
    copies = {image.tobytes() for image in values}
    assert all(image.tobytes() in copies for image in read_all(few))


def test_augmented_copies_of_larger_images(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(1, 256, (30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    values = read_all(open_samples(tmp_path, NCHW, DataOptions(preprocess="raw", augment=20)))
    assert values.min() > 0  # no padding
    assert len({image.tobytes() for image in values}) > 4


def test_selection_is_spread_over_classes(folder: Path) -> None:
    values = read_all(open_samples(folder, NCHW, DataOptions(preprocess="raw", samples=4)))
    np.testing.assert_array_equal(values, PIXELS[[2, 7, 12, 17]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((None, 3, 8, 8), DataOptions(), "images need --preprocess"),
        ((None, 3, 8, 8), DataOptions(preprocess="imagnet"), "imagnet is not known; did you mean imagenet"),
        ((None, 3, 8, 8), DataOptions(preprocess="raw", mean=(0.5,)), "with --mean and --std, give unit"),
        ((None, 3, 8, 8), DataOptions(mean=(0.5, 0.5)), "--mean has 2 values.* has 3 channels"),
        (
            (None, 1, 8, 8),
            DataOptions(preprocess="imagenet"),
            "--mean has 3 values in --preprocess imagenet.* 1 channel;",
        ),
        ((None, 3, 8, 8), DataOptions(std=(0.0,)), "std positive"),
        ((None, 3, 8, 8), DataOptions(preprocess="unit", size=(9, 9)), "--image-size 9 9 differs from the 8 8"),
        (
            (None, 3, None, None),
            DataOptions(preprocess="unit"),
            "any size; give --image-size HEIGHT WIDTH, e.g. 224 224",
        ),
        ((None, None, None, None), DataOptions(preprocess="unit", size=(8, 8)), "say which with --layout"),
        ((None, 3, 8, 3), DataOptions(preprocess="unit"), "say which with --layout"),
        ((None, 3, 8, 8), DataOptions(preprocess="unit", layout="CHW"), "--layout CHW is not known"),
        ((None, 3, 8, 8), DataOptions(preprocess="unit", layout="NHWC"), "--layout NHWC does not fit"),
        ((None, 5, 8, 8), DataOptions(preprocess="unit"), "is no image"),
        ((None, 192), DataOptions(preprocess="unit"), "one input of rank 4, but this one has x of rank 2"),
        ((None, 3, 8, 8), DataOptions(preprocess="unit", tokenizer="t"), "--tokenizer does not apply to images"),
    ],
)
def test_unclear_preparation(folder: Path, shape: tuple[int | None, ...], options: DataOptions, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        open_samples(folder, [InputSpec("x", FLOAT, shape)], options)


def test_types_that_are_no_pixels(folder: Path) -> None:
    with pytest.raises(CalibrationError, match="takes uint8: raw pixels; leave out --preprocess"):
        open_samples(folder, [InputSpec("x", np.dtype(np.uint8), (None, 3, 8, 8))], DataOptions(preprocess="unit"))
    with pytest.raises(CalibrationError, match="takes int64, and images are float or uint8"):
        open_samples(folder, [InputSpec("x", np.dtype(np.int64), (None, 3, 8, 8))], DataOptions(preprocess="unit"))
    with pytest.raises(CalibrationError, match="one input of rank 4, but this one has x of rank 4, y of rank 1"):
        open_samples(folder, [*NCHW, InputSpec("y", FLOAT, (1,))], DataOptions(preprocess="unit"))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((None, 3, 3, 8), "NCHW"),
        ((None, None, 8, 8), "NCHW"),
        ((None, 8, 8, None), "NHWC"),
        ((None, 1, 28, 28), "NCHW"),
        ((1, None, None, 3), "NHWC"),
    ],
)
def test_layout_guess(shape: tuple[int | None, ...], layout: str) -> None:
    assert find_layout(InputSpec("x", FLOAT, shape), DataOptions()) == layout


def test_corrupt_images_are_named(folder: Path) -> None:
    path = folder / "class1" / "11.png"
    samples = open_samples(folder, NCHW, DataOptions(preprocess="unit"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(CalibrationError, match=r"class1/11.png: cannot be decoded"):
        read_all(samples)
    path.write_bytes(b"no image at all")
    with pytest.raises(CalibrationError, match=r"class1/11.png: is no image of a known format"):
        read_all(samples)
    path.unlink()
    with pytest.raises(CalibrationError, match=r"class1/11.png: cannot be read"):
        read_all(samples)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    with pytest.raises(CalibrationError, match="more than 8 bits"):
        read_all(samples)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "ICNS", "SGI"])
def test_formats_that_nobody_trains_on_are_refused_whatever_they_are_called(folder: Path, kind: str) -> None:
    Image.fromarray(PIXELS[0]).resize((32, 32)).save(folder / "class1" / "11.png", kind)
    with pytest.raises(CalibrationError, match=r"class1/11.png: is no image of a known format \(JPEG, PNG, BMP"):
        read_all(open_samples(folder, NCHW, DataOptions(preprocess="unit")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_formats_are_told_by_content(folder: Path, kind: str) -> None:
    Image.fromarray(PIXELS[0]).save(folder / "class1" / "11.png", kind)
    assert len(read_all(open_samples(folder, NCHW, DataOptions(preprocess="unit")))) == 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "class1" / "12.png")
    with pytest.raises(CalibrationError, match=r"class1/12.png: cannot be read \(is not a regular file\)"):
        read_all(open_samples(folder, NCHW, DataOptions(preprocess="unit")))
    for name in ("x.npz", "x.npy"):
        pipe = tmp_path / f"with {name}" / name
        pipe.parent.mkdir()
        os.mkfifo(pipe)
        with pytest.raises(CalibrationError, match=r"x\.np[yz]: a pipe or device cannot be read again"):
            open_samples(pipe, NCHW, DataOptions())
        with pytest.raises(CalibrationError, match=r"x\.np[yz]: cannot be read \(it is not a regular file\)"):
            open_samples(pipe.parent, NCHW, DataOptions())


def test_zip_files_without_images(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no image")
    with pytest.raises(CalibrationError, match=r"a.zip: holds no image"):
        open_samples(path, NCHW, DataOptions(preprocess="unit"))
    path.write_bytes(b"no zip")
    with pytest.raises(CalibrationError, match=r"a.zip: cannot be read as a .zip"):
        open_samples(path, NCHW, DataOptions(preprocess="unit"))


def test_shared_cifar(shared: Path) -> None:
    inputs = [InputSpec("input", FLOAT, (None, 3, 32, 32))]
    samples = open_samples(
        shared / "data/cifar10-jpeg/train5000.zip", inputs, DataOptions(preprocess="imagenet", samples=100)
    )
    (batch, *_) = samples.read(90, 100)
    assert samples.count == 100 and batch.feed["input"].shape == (10, 3, 32, 32)
    with zipfile.ZipFile(shared / "data/cifar10-jpeg/train5000.zip") as archive:
        name = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[(2 * 9 + 1) * 5000 // 200]
        pixels = np.asarray(Image.open(archive.open(name)).convert("RGB")) / 255
    expected = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(batch.feed["input"][0], expected.transpose(2, 0, 1), atol=1e-5)


def test_folders_are_classes(folder: Path, tmp_path: Path) -> None:
    samples = open_samples(folder, NCHW, DataOptions(preprocess="raw", batch=6, augment=2))
    labels = np.concatenate([batch.labels for batch in samples.read(0, samples.count) if batch.labels is not None])
    np.testing.assert_array_equal(labels, np.repeat([number // 10 for number in ORDER], 2))
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        if path.suffix in (".png", ".BMP") and not path.name.startswith("."):
            (tmp_path / "flat" / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    flat = open_samples(tmp_path / "flat", NCHW, DataOptions(preprocess="raw"))
    assert next(flat.read(0, 20)).labels is None
