"""The models that the benchmarks run on: what calibrates each, and what scores it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks.common.evaluation import IMAGENET_EVALUATION, Score, cifar_top1, imagenet_top1, sts_spearman
from benchmarks.common.language import perplexity
from onnx_obc.calibration.data import open_samples
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Samples
from onnx_obc.graph.model import input_specs

NAMES = ("ResNet-20", "ResNet-56", "EfficientNet-Lite0", "MiniLM")
DECODERS = ("LanguageModel", "Whisper")  # where a benchmark asks for them
Scoring = Callable[[Path, npt.NDArray[np.generic] | None], Score]


@dataclass(frozen=True)
class Subject:
    """A trained model with its data.

    path: of the model, or of the folder of several files that work together. metric: what `score` gives; classifier:
    whether its predictions are classes. calibration: the data, to be read with `options`; held_out: data of the same
    kind that calibrates nothing. score: of a model file, or of a folder of such, given the dense predictions or None.
    """

    name: str
    path: Path
    metric: str
    classifier: bool
    calibration: Path
    held_out: Path
    options: DataOptions
    score: Scoring


def find_subjects(models: Path, shared: Path, scratch: Path, names: tuple[str, ...] = NAMES) -> list[Subject]:
    """Those of the named models whose files are there; says what is missing of the others. Writes into `scratch`."""
    needs = {
        "ResNet-20": [shared / "models/resnet20-cifar10.onnx", *_cifar(shared)],
        "ResNet-56": [shared / "models/resnet56-cifar10.onnx", *_cifar(shared)],
        "EfficientNet-Lite0": [models / "efficientnet-lite0.onnx", shared / "data/imagenet1k-sample/images256.zip"],
        "MiniLM": [models / "minilm.onnx", models / "minilm-tokenizer.json", *_stsb(shared)],
        "LanguageModel": [
            *(models / "language-model" / file for file in ("model.onnx", "tokenizer.json")),
            *(shared / "data/text" / f"wikitext2-{part}.txt" for part in ("valid", "test")),
        ],
        "Whisper": [
            *(shared / "data/stsb" / f"stsb_{part}.csv" for part in ("train", "test")),
            *(models / "whisper" / f"{part}.onnx" for part in ("encoder", "decoder", "decoder_with_past")),
            *(models / "whisper" / f"{part}.json" for part in ("tokenizer", "suppressed")),
        ],
    }
    found = []
    for name in names:
        missing = [str(path) for path in needs[name] if not path.exists()]
        if missing:
            print(f"{name} is skipped: {', '.join(missing)} not found (see --shared, --models and tools/)")
        elif name == "EfficientNet-Lite0":
            found.append(_imagenet(name, needs[name][0], needs[name][1], scratch))
        elif name == "MiniLM":
            found.append(_sentences(name, *needs[name]))
        elif name == "LanguageModel":
            found.append(_language_model(name, *needs[name]))
        elif name == "Whisper":
            found.append(_whisper(name, models / "whisper", *needs[name][:2]))
        else:
            found.append(_images(name, *needs[name]))
    return found


def open_data(model: ir.Model, data: object, options: DataOptions) -> Samples:
    """The samples of a file, or of feeds, for a model."""
    return open_samples(data, input_specs(model), options, model)


def subset(archive: Path, target: Path, keep: Callable[[int], bool]) -> Path:
    """A copy of a .zip with only the images whose number in the sorted archive passes `keep`."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as part:
        names = sorted(name for name in source.namelist() if name.endswith(".jpg"))
        for number, name in enumerate(names):
            if keep(number):
                part.writestr(name, source.read(name))
    return target


def _cifar(shared: Path) -> list[Path]:
    return [shared / "data/cifar10-jpeg" / name for name in ("train5000.zip", "test5000.zip")]


def _stsb(shared: Path) -> list[Path]:
    return [shared / "data/stsb" / name for name in ("stsb_train.csv", "stsb_dev.csv", "stsb_test.csv")]


def _images(name: str, path: Path, train: Path, test: Path) -> Subject:
    options = DataOptions(preprocess="imagenet", samples=1024)
    return Subject(
        name, path, "top-1", True, train, test, options, lambda file, dense: cifar_top1(file, test, reference=dense)
    )


def _imagenet(name: str, path: Path, images: Path, scratch: Path) -> Subject:
    # One image for each class: the number in the archive is the class.
    even = subset(images, scratch / "imagenet-even.zip", lambda number: number % 2 == 0)
    odd = subset(images, scratch / "imagenet-odd.zip", lambda number: number % 2 == 1)
    return Subject(
        name,
        path,
        "top-1",
        True,
        even,
        odd,
        DataOptions(preprocess="tf"),
        lambda file, dense: imagenet_top1(file, images, IMAGENET_EVALUATION, dense),
    )


def _sentences(name: str, path: Path, tokenizer: Path, train: Path, dev: Path, test: Path) -> Subject:
    return Subject(
        name,
        path,
        "Spearman",
        False,
        train,
        dev,
        DataOptions(samples=1024, tokenizer=str(tokenizer)),
        lambda file, dense: sts_spearman(file, test, tokenizer, dense),
    )


def _language_model(name: str, path: Path, tokenizer: Path, valid: Path, test: Path) -> Subject:
    return Subject(
        name,
        path,
        "perplexity",
        True,
        valid,
        test,
        DataOptions(samples=128, tokenizer=str(tokenizer)),
        lambda file, dense: perplexity(file, test, tokenizer, dense),
    )


def _whisper(name: str, folder: Path, train: Path, test: Path) -> Subject:
    from benchmarks.common import speech  # which imports transformers

    return Subject(
        *(name, folder, "word error rate", True, train, test, DataOptions()),
        lambda files, dense: speech.score(files, folder, test, dense),
    )
