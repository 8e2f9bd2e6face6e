"""An encoder of sentences with its tokenizer: calibrated on text, judged by Spearman's correlation of pairs.

python examples/text_encoder.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from onnx_obc import DataOptions, Evaluation, Recipe, compress

WORDS = ("a", "the", "cat", "dog", "sleeps", "runs", "sees", "old", "small", "red", "house", "tree", "and", "under")


def encoder(path: Path) -> None:
    """Yours, exported. This one is a table and two products, averaged over the tokens."""
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((64, 32)), "up": rng.standard_normal((32, 64)) / 6}
    weights["down"] = rng.standard_normal((64, 32)) / 8
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"], name="embed"),
        helper.make_node("MatMul", ["tokens", "up"], ["wide"], name="block/up"),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["embedding"], name="block/down"),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", "T"])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", "T", 32])
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "encoder", [ids], [embedding], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def texts(folder: Path) -> None:
    """Yours. Here a tokenizer, sentences to calibrate on, and pairs with a number: how alike they are."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0} | {word: i + 1 for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(1)
    sentences = [" ".join(rng.choice(WORDS, 6)) for _ in range(192)]
    (folder / "train.txt").write_text("\n".join(sentences))
    alike = [len({*a.split()} & {*b.split()}) for a, b in zip(sentences[::2], sentences[1::2], strict=True)]
    rows = [f"{a},{b},{n}" for a, b, n in zip(sentences[::2], sentences[1::2], alike, strict=True)]
    (folder / "test.csv").write_text("\n".join(rows))


def main(folder: Path) -> None:
    """Compress it twice: 8 bits with inputs, and 4-bit weights; the table to integers as well."""
    dense = folder / "encoder.onnx"
    encoder(dense)
    texts(folder)
    read = DataOptions(tokenizer=str(folder / "tokenizer.json"))
    judged = Evaluation("spearman", folder / "test.csv", read)
    recipes = {"int8": Recipe(embeddings="int8"), "int4": Recipe(weights="int4", activations="none", embeddings="int8")}
    for name, recipe in recipes.items():
        output = folder / f"encoder-{name}.onnx"
        report = compress(dense, folder / "train.txt", recipe, output, data=read, evaluation=judged).report
        assert report.metric is not None
        print(f"{name}: {report.metric.dense:.4f} → {report.metric.compressed:.4f}, {report.file_bytes_after} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
