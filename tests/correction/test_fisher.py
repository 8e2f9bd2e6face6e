"""How much an entry of a value counts: against what the model's Jacobian says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Array, build, random

from onnx_obc.correction.fisher import squared_gradients
from onnx_obc.graph.layers import find_layers

make = onnx.helper.make_node
SAMPLES = 4000


def model(classes: bool) -> ir.Model:
    """x → z → y by two products; y are scores of classes, or, behind a square, a vector."""
    nodes = [make("Gemm", ["x", "w"], ["z"], "first"), make("Gemm", ["z", "v"], ["y" if classes else "h"], "second")]
    if not classes:
        nodes.append(make("Mul", ["h", "two"], ["y"]))
    weights = {"w": random(4, 6), "v": random(6, 5), "two": np.full(1, 2, np.float32)}
    return ir.from_proto(build(nodes, {"x": ("N", 4)}, {"y": None}, weights))


def found(graph: ir.Model, feeds: list[dict[str, Array]], *values: str) -> list[dict[str, Array]]:
    return squared_gradients(graph, find_layers(graph)[0], values, feeds, "--solver brecq")


def test_of_a_vector_it_is_the_squared_jacobian() -> None:
    feeds = [{"x": random(SAMPLES, 4)}]
    (weights,) = found(model(False), feeds, "z")
    assert weights["z"].shape == (SAMPLES, 6) and weights["z"].dtype == np.float32
    expected = (2 * random(6, 5) ** 2).sum(axis=1)  # Σ over outputs of (∂y/∂z)², up to a factor
    expected /= expected.mean()
    assert weights["z"].mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(weights["z"].mean(axis=0), expected, rtol=0.12)


def test_of_scores_it_is_the_fisher_information() -> None:
    """E over classes drawn from the probabilities p of (∂ log p / ∂z)², here for one input many times over."""
    x = np.repeat(random(1, 4, seed=2), SAMPLES, axis=0)
    (weights,) = found(model(True), [{"x": x}], "z")
    v = random(6, 5).astype(np.float64)
    scores = x[0].astype(np.float64) @ random(4, 6) @ v
    p = np.exp(scores - scores.max())
    p /= p.sum()
    expected = sum(p[c] * (v[:, c] - v @ p) ** 2 for c in range(5))
    expected /= expected.mean()
    np.testing.assert_allclose(weights["z"].mean(axis=0), expected, rtol=0.2, atol=0.05)


def test_values_that_nothing_depends_on_count_the_same() -> None:
    graph = build(
        [make("Gemm", ["x", "w"], ["z"], "layer"), make("Mul", ["z", "no"], ["m"]), make("Sub", ["x", "m"], ["y"])],
        {"x": ("N", 4)}, {"y": None}, {"w": random(4, 4), "no": np.zeros(1, np.float32)},
    )  # fmt: skip
    (weights,) = found(ir.from_proto(graph), [{"x": random(8, 4)}], "z")
    assert (weights["z"] == 1).all()


def test_the_seed_decides() -> None:
    feeds = [{"x": random(8, 4)}, {"x": random(3, 4)}]
    graph, layers = model(True), find_layers(model(True))[0]
    layers = find_layers(graph)[0]
    one, same, other = (
        squared_gradients(graph, layers, ["z"], feeds, "--solver brecq", seed=seed) for seed in (1, 1, 2)
    )
    assert [x["z"].shape for x in one] == [(8, 6), (3, 6)]
    assert all((a["z"] == b["z"]).all() for a, b in zip(one, same, strict=True))
    assert any((a["z"] != b["z"]).any() for a, b in zip(one, other, strict=True))
