"""How much an entry of a value counts: against what the model's Jacobian says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from small_graphs import Array, build, random

from onnx_obc.correction.fisher import fisher_weights
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


def found(graph: ir.Model, feeds: list[dict[str, Array]], seed: int = 0) -> list[Array]:
    """The squared gradients, (samples, 6), of the likelihood of each sample."""
    weights = fisher_weights(graph, find_layers(graph)[0], "z", feeds, "--solver brecq", seed=seed)
    return [((np.sqrt(w) - 1) * len(w)) ** 2 for w in weights]


def test_of_a_vector_it_is_the_squared_jacobian() -> None:
    (squares,) = found(model(False), [{"x": random(SAMPLES, 4)}])
    assert squares.shape == (SAMPLES, 6)
    expected = ((2 * random(6, 5)) ** 2).sum(axis=1)  # Σ over outputs of (∂y/∂z)²
    np.testing.assert_allclose(squares.mean(axis=0), expected, rtol=0.12)


def test_of_scores_it_is_the_fisher_information() -> None:
    """E over classes drawn from the probabilities p of (∂ log p / ∂z)², here for one input many times over."""
    x = np.repeat(random(1, 4, seed=2), SAMPLES, axis=0)
    (squares,) = found(model(True), [{"x": x}])
    v = random(6, 5).astype(np.float64)
    scores = x[0].astype(np.float64) @ random(4, 6) @ v
    p = np.exp(scores - scores.max())
    p /= p.sum()
    expected = sum(p[c] * (v[:, c] - v @ p) ** 2 for c in range(5))
    np.testing.assert_allclose(squares.mean(axis=0), expected, rtol=0.2, atol=0.05)


def test_a_head_of_one_output_is_no_classifier() -> None:
    nodes = [make("Gemm", ["x", "w"], ["z"], "first"), make("Gemm", ["z", "v"], ["y"], "second")]
    graph = build(nodes, {"x": ("N", 4)}, {"y": None}, {"w": random(4, 6), "v": random(6, 1)})
    (squares,) = found(ir.from_proto(graph), [{"x": random(SAMPLES, 4)}])
    np.testing.assert_allclose(squares.mean(axis=0), random(6, 1)[:, 0] ** 2, rtol=0.12)


def test_values_that_nothing_depends_on_count_one() -> None:
    graph = build(
        [make("Gemm", ["x", "w"], ["z"], "layer"), make("Mul", ["z", "no"], ["m"]), make("Sub", ["x", "m"], ["y"])],
        {"x": ("N", 4)}, {"y": None}, {"w": random(4, 4), "no": np.zeros(1, np.float32)},
    )  # fmt: skip
    dense = ir.from_proto(graph)
    (weights,) = fisher_weights(dense, find_layers(dense)[0], "z", [{"x": random(8, 4)}], "--solver brecq")
    assert (weights == 1).all() and weights.dtype == np.float32


def test_the_seed_decides() -> None:
    feeds = [{"x": random(8, 4)}, {"x": random(3, 4)}]
    one, same, other = (found(model(True), feeds, seed) for seed in (1, 1, 2))
    assert [x.shape for x in one] == [(8, 6), (3, 6)]
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))
