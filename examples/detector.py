"""A network shaped like a detector: two outputs, a metric of one's own, a rule for the head that decides classes.

python examples/detector.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_obc import Evaluation, Recipe, Rule, compress

PLACES, CLASSES = 16, 3


def detector(path: Path) -> None:
    """Yours, exported. This one has a backbone of two convolutions and a head each for boxes and classes."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "wb": (4, 32, 1, 1), "wc": (CLASSES, 32, 1, 1)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) * np.sqrt(2 / np.prod(s[1:]))).astype(np.float32), name)
        for name, s in shapes.items()
    ]
    weights.append(numpy_helper.from_array(np.array([0, -1, PLACES]), "flat"))
    strided = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="backbone/conv1", **strided),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="backbone/conv2", **strided),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "wb"], ["e"], name="head/boxes"),
        helper.make_node("Conv", ["d", "wc"], ["f"], name="head/classes"),
        helper.make_node("Reshape", ["e", "flat"], ["boxes"]),
        helper.make_node("Reshape", ["f", "flat"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4, PLACES])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", CLASSES, PLACES])
    graph = helper.make_graph(nodes, "detector", [image], [boxes, scores], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def found_places(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The share of images whose surest place has the right class and lies near the right box. Higher is better."""
    scores, boxes = outputs["scores"], outputs["boxes"]  # (images, classes, places), (images, 4, places)
    best = scores.max(axis=1).argmax(axis=1)  # (images,)
    image = np.arange(len(best))
    right = scores[image, :, best].argmax(axis=1) == labels[:, 0]
    near = np.abs(boxes[image, :, best] - labels[:, 1:]).max(axis=1) < 0.25
    return float(np.mean(right & near))


def main(folder: Path) -> None:
    """4-bit weights, but 8 bits for the head of classes, judged by the metric above."""
    dense = folder / "detector.onnx"
    detector(dense)
    rng = np.random.default_rng(1)
    train, test = (rng.standard_normal((count, 3, 16, 16)).astype(np.float32) for count in (128, 64))
    # Labels of a real test set stand here: class and box of each image. These are what the dense model says.
    import onnxruntime

    session = onnxruntime.InferenceSession(dense, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["boxes", "scores"], {"image": test})
    best = scores.max(axis=1).argmax(axis=1)
    image = np.arange(len(best))
    labels = np.concatenate([scores[image, :, best].argmax(axis=1)[:, None], boxes[image, :, best]], axis=1)

    recipe = Recipe(weights="int4", activations="none", layers=(Rule(match="head/classes", weights="int8"),))
    judged = Evaluation(found_places, {"image": test, "labels": labels.astype(np.float32)})
    report = compress(dense, {"image": train}, recipe, folder / "detector-small.onnx", evaluation=judged).report
    assert report.metric is not None
    print({layer.name: layer.level for layer in report.layers})
    print(f"found: {report.metric.dense:.2f} → {report.metric.compressed:.2f}")
    for output in report.outputs:
        print(f"{output.name}: {output.sqnr_db:.1f} dB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
