"""Task accuracy of a model file: top-1 on ImageNet and CIFAR-10, Spearman's correlation on the STS benchmark.

Each function runs the model with onnxruntime on the CPU and returns a `Score`: the figure, and the predictions,
so that a compressed model can be compared with the dense one: `cifar_top1(small, zip, dense.predictions)`.
The data is that of the shared folder; ImageNet images are stored at 256×256, cropped here to the centre 224×224.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from PIL import Image
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from onnx_obc.runtime.output_loss import OutputLoss

IMAGENET_EVALUATION = range(1, 1000, 2)  # even indices calibrate, odd ones evaluate
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 128


@dataclass(frozen=True)
class Score:
    """One evaluation of one model.

    value: top-1 accuracy in [0, 1], or Spearman's correlation. predictions: (samples,) int64 classes, or
    float64 cosine similarities. agreement: the fraction of classes equal to the reference's, or Spearman's
    correlation with the reference's similarities; None without a reference. outputs: (samples, classes) float32 scores,
    or (sentences, width) of length 1.
    """

    value: float
    predictions: npt.NDArray[np.generic]
    agreement: float | None
    outputs: npt.NDArray[np.float32]


def output_loss(dense: Score, compressed: Score, classifier: bool) -> float:
    """KL(dense ‖ compressed) in nats, per sample; of embeddings ‖y − ŷ‖² / ‖y‖² over all of them."""
    loss = OutputLoss(("outputs",) if classifier else ())
    loss.add({"outputs": dense.outputs}, {"outputs": compressed.outputs})
    return loss.value


def imagenet_top1(
    model: Path | str,
    images_zip: Path | str,
    indices: Sequence[int] = IMAGENET_EVALUATION,
    reference: npt.NDArray[np.generic] | None = None,
    batch: int = 50,
    threads: int = 0,
) -> Score:
    """Top-1 accuracy on the images of these class indices; pixels (x/255 − 0.5)/0.5, centre crop 224."""
    session = cpu_session(model, threads)
    outputs = [_run(session, images) for images in imagenet_images(images_zip, indices, batch)]  # (batch, 1000) each
    return _top1(np.concatenate(outputs), np.asarray(indices), reference)


def imagenet_images(
    images_zip: Path | str, indices: Sequence[int], batch: int = 50
) -> Iterator[npt.NDArray[np.float32]]:
    """Batches (n, 3, 224, 224) float32 of the images with these class indices, in this order."""
    with zipfile.ZipFile(images_zip) as archive:
        names = {int(Path(name).name[:4]): name for name in archive.namelist() if name.endswith(".jpg")}
        for start in range(0, len(indices), batch):
            pixels = [_pixels(archive, names[i])[16:240, 16:240] for i in indices[start : start + batch]]
            yield _nchw(np.stack(pixels), (0.5,) * 3, (0.5,) * 3)


def cifar_top1(
    model: Path | str,
    images_zip: Path | str,
    reference: npt.NDArray[np.generic] | None = None,
    batch: int = 50,
    threads: int = 0,
) -> Score:
    """Top-1 accuracy on every image of the archive (`class/NNNN.jpg`, classes in alphabetical order)."""
    session = cpu_session(model, threads)
    pixels, labels = cifar_images(images_zip)
    outputs = [
        _run(session, _nchw(pixels[start : start + batch], CIFAR_MEAN, CIFAR_STD))  # (batch, 10)
        for start in range(0, len(pixels), batch)
    ]
    return _top1(np.concatenate(outputs), labels, reference)


def cifar_images(images_zip: Path | str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Every image of the archive as (n, 32, 32, 3) uint8, class by class, and the labels (n,) int64."""
    with zipfile.ZipFile(images_zip) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        pixels = np.stack([_pixels(archive, name) for name in names])
    classes = [Path(name).parent.name for name in names]
    order = {name: label for label, name in enumerate(sorted(set(classes)))}
    return pixels, np.array([order[name] for name in classes])


def sts_spearman(
    model: Path | str,
    csv_file: Path | str,
    tokenizer: Path | str,
    reference: npt.NDArray[np.generic] | None = None,
    batch: int = 50,
    threads: int = 0,
) -> Score:
    """Spearman's rank correlation of the cosine similarities of sentence pairs with the human scores."""
    with Path(csv_file).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    vectors = embed(model, [row[0] for row in rows] + [row[1] for row in rows], tokenizer, batch, threads)
    first, second = vectors[: len(rows)], vectors[len(rows) :]  # (pairs, width) each, of length 1
    similarity = np.einsum("pw,pw->p", first, second, dtype=np.float64)  # (pairs,)
    value = float(spearmanr(similarity, [float(row[2]) for row in rows]).statistic)
    agreement = None if reference is None else float(spearmanr(similarity, reference).statistic)
    return Score(value, similarity, agreement, vectors)


def embed(
    model: Path | str, sentences: Sequence[str], tokenizer: Path | str, batch: int = 50, threads: int = 0
) -> npt.NDArray[np.float32]:
    """The sentence vectors (sentences, width) float32; sentences of like length share a batch."""
    reader = Tokenizer.from_file(str(tokenizer))
    reader.enable_truncation(MAX_TOKENS)
    reader.no_padding()
    tokens = [encoding.ids for encoding in reader.encode_batch(list(sentences))]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    session = cpu_session(model, threads)
    vectors: dict[int, npt.NDArray[np.float32]] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        ids = np.zeros((len(chosen), max(len(tokens[i]) for i in chosen)), np.int64)  # (batch, tokens)
        mask = np.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, : len(tokens[i])] = tokens[i]
            mask[row, : len(tokens[i])] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        vectors |= zip(chosen, session.run(None, feed)[0], strict=True)
    return np.stack([vectors[i] for i in range(len(order))])  # (sentences, width)


def cpu_session(model: Path | str, threads: int) -> ort.InferenceSession:
    """A file in onnxruntime, as users run it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads  # 0: as many as there are cores
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    output: npt.NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return output


def _pixels(archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))


def _nchw(pixels: npt.NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    unit = pixels.astype(np.float32) / 255  # (n, h, w, 3)
    scaled = (unit - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))  # (n, 3, h, w)


def _top1(
    outputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], reference: npt.NDArray[np.generic] | None
) -> Score:
    predicted = outputs.argmax(axis=1)  # (samples,)
    agreement = None if reference is None else float(np.mean(predicted == reference))
    return Score(float(np.mean(predicted == labels)), predicted, agreement, outputs)
