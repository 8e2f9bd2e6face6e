"""A folder with the files that the pages speak of, all of them tiny, so that commands from the pages run there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from digits import build
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from onnx_obc import build as build_database
from onnx_obc import compress

CLASSES, SIZE = 4, 12
IMAGE_MODELS = ("model", "in", "dense", "resnet20")
WORDS = {"[UNK]": 0, "[PAD]": 1} | {f"w{i}": 2 + i for i in range(62)}
SCORE = """
import numpy as np


def f1(outputs, labels):
    found = outputs["scores"].argmax(axis=1)
    hits = np.sum((found == 1) & (labels == 1))
    return 2 * hits / max(np.sum(found == 1) + np.sum(labels == 1), 1)
"""
FEEDS = """
import numpy as np


def feeds():
    rng = np.random.default_rng(4)
    for _ in range(64):
        yield {"input": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)}
"""
RECIPE = """
weights: int4
activations: none
layers:
  - match: "*/conv1/*"
    weights: int8
  - match: "*classifier*"
    skip: true
"""


def image_model() -> onnx.ModelProto:
    """Three convolutions, a product in front of the classifier; images (N, 3, 12, 12) to scores of four classes."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (32, 16, 3, 3), "w4": (32, 64), "w5": (64, CLASSES)}
    fan_in = {"w4": 32, "w5": 64}
    weights = {
        name: (rng.standard_normal(shape) * np.sqrt(2 / fan_in.get(name, np.prod(shape[1:])))).astype(np.float32)
        for name, shape in shapes.items()
    }

    def conv(inputs: list[str], output: str, name: str, stride: int = 1) -> list[onnx.NodeProto]:
        same = {"pads": [1, 1, 1, 1], "strides": [stride, stride]}
        made = helper.make_node("Conv", inputs, [f"{output}0"], name=name, **same)
        return [made, helper.make_node("Relu", [f"{output}0"], [output])]

    nodes = [
        *conv(["input", "w1"], "a", "/conv1/Conv"),
        *conv(["a", "w2"], "b", "/layer1/conv1/Conv"),
        *conv(["b", "w3"], "c", "/layer2/conv1/Conv", 2),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w4"], ["f"], name="/project/MatMul"),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("MatMul", ["g", "w5"], ["scores"], name="/classifier/MatMul"),
    ]
    inputs = {"input": (TensorProto.FLOAT, ["N", 3, SIZE, SIZE])}
    return build(nodes, inputs, {"scores": ["N", CLASSES]}, weights)


def text_model() -> onnx.ModelProto:
    """Token ids (N, tokens) through a table and two products to embeddings (N, 16)."""
    rng = np.random.default_rng(1)
    weights = {
        "table": rng.standard_normal((len(WORDS), 32)).astype(np.float32),
        "up": rng.standard_normal((32, 48)).astype(np.float32) / 6,
        "down": rng.standard_normal((48, 16)).astype(np.float32) / 7,
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["e"], name="/embed/Gather"),
        helper.make_node("MatMul", ["e", "up"], ["u"], name="/block/up/MatMul"),
        helper.make_node("Relu", ["u"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["d"], name="/block/down/MatMul"),
        helper.make_node("ReduceMean", ["d"], ["embedding"], axes=[1], keepdims=0),
    ]
    return build(nodes, {"input_ids": (TensorProto.INT64, ["N", "T"])}, {"embedding": ["N", 16]}, weights)


def labelled_images(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, 12, 12) float32 whose colour is their class, and the classes."""
    labels = np.arange(count) % CLASSES
    hues = np.random.default_rng(3).standard_normal((CLASSES, 3))
    images = rng.standard_normal((count, 3, SIZE, SIZE)) / 2 + hues[labels][:, :, None, None]
    return images.astype(np.float32), labels


def make(folder: Path) -> None:
    """Write everything."""
    rng = np.random.default_rng(2)
    for name in IMAGE_MODELS:
        onnx.save(image_model(), folder / f"{name}.onnx")
    onnx.save(text_model(), folder / "text.onnx")
    np.savez(folder / "data.npz", input=labelled_images(rng, 96)[0])
    images, labels = labelled_images(rng, 64)
    np.savez(folder / "test.npz", input=images, labels=labels)
    _write_images(folder, *labelled_images(rng, 96))
    _write_texts(folder, rng)
    (folder / "score.py").write_text(SCORE)
    (folder / "feeds.py").write_text(FEEDS)
    for name in ("recipe", "fix"):
        (folder / f"{name}.yaml").write_text(RECIPE)
    compress(folder / "model.onnx", folder / "data.npz", output=folder / "compressed.onnx")
    for name in ("file", "small"):
        shutil.copy(folder / "compressed.onnx", folder / f"{name}.onnx")
    build_database(folder / "model.onnx", folder / "data.npz", "gpu", folder / "DB")


def _write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / f"class{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(image * 40 + 128, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(path)
    for name in ("images", "train", "test", "train5000"):
        shutil.make_archive(str(folder / name), "zip", folder / "images")


def _write_texts(folder: Path, rng: np.random.Generator) -> None:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 62, 5)) for _ in range(192)]
    (folder / "texts.txt").write_text("\n".join(texts))
    rows = [
        f"{first},{second},{score}" for first, second, score in zip(texts[::2], texts[1::2], range(96), strict=True)
    ]
    for name in ("texts", "train", "test"):
        (folder / f"{name}.csv").write_text("\n".join(rows))
