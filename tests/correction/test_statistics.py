"""Statistics come back to those of the dense model, wherever they can be corrected, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper
from small_graphs import Array, build, random, run
from written import rounded

from onnx_obc.correction.sites import Site, find_sites
from onnx_obc.correction.statistics import affine, correct, moments
from onnx_obc.finish import write
from onnx_obc.graph.fold import fold
from onnx_obc.graph.layers import find_layers
from onnx_obc.graph.model import read_model, save_model
from onnx_obc.graph.opset import raise_opset
from onnx_obc.graph.qdq import Writer
from onnx_obc.judge import Judge
from onnx_obc.level import Solution, parse_level
from onnx_obc.output_loss import OutputLoss, class_scores
from onnx_obc.runtime.session import open_session
from onnx_obc.runtime.stepper import Stepper
from onnx_obc.solving import Solved
from onnx_obc.verify import check_weights


def normalised(kind: str) -> tuple[onnx.ModelProto, dict[str, list[int | str]]]:
    """Two products with biases, a LayerNorm of some kind between them, and another product."""
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["m"], name="up"),
        helper.make_node("Add", ["m", "bu"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
    ]
    if kind == "op":
        nodes.append(helper.make_node("LayerNormalization", ["r", "gamma", "beta"], ["n"], name="norm"))
    else:
        nodes += [
            helper.make_node("ReduceMean", ["r"], ["mean"], axes=[-1]),
            helper.make_node("Sub", ["r", "mean"], ["c"]),
            helper.make_node("Mul", ["c", "c"], ["sq"]),
            helper.make_node("ReduceMean", ["sq"], ["var"], axes=[-1]),
            helper.make_node("Add", ["var", "eps"], ["ve"]),
            helper.make_node("Sqrt", ["ve"], ["sd"]),
            helper.make_node("Div", ["c", "sd"], ["z"]),
            helper.make_node("Mul", ["z", "gamma"], ["g"]),
            helper.make_node("Add", ["g", "beta"], ["n"], name="shift"),
        ]
    nodes += [
        helper.make_node("MatMul", ["n", "d"], ["p"], name="down"),
        helper.make_node("Add", ["p", "bd"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "u": random(6, 12), "bu": random(12), "gamma": 1 + 0.1 * random(12), "beta": random(12, seed=1),
        "d": random(12, 5), "bd": random(5), "eps": np.array(1e-5, np.float32),
    }  # fmt: skip
    return build(nodes, {"x": ["N", 7, 6]}, {"y": ["N", 7, 5]}, weights), {"x": ["N", 7, 6]}


def convolutional(groups: int = 1, shared: bool = False) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, twice, the second without a bias; then a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "v", "b"], ["h"], name="first", pads=[1, 1, 1, 1], group=groups),
        helper.make_node("BatchNormalization", ["h", *(f"bn{i}" for i in "smtv")], ["i"]),
        helper.make_node("Relu", ["i"], ["r"]),
        helper.make_node("Conv", ["r", "w", *(["b"] if shared else [])], ["k"], name="second"),
        helper.make_node("Relu", ["k"], ["q"]),
        helper.make_node("GlobalAveragePool", ["q"], ["f"]),
        helper.make_node("Flatten", ["f"], ["e"]),
        helper.make_node("Gemm", ["e", "g", "c"], ["y"], name="last", transB=1),
    ]
    weights = {
        "v": random(8, 4 // groups, 3, 3),
        "b": random(8),
        "w": random(8, 8, 1, 1),
        "g": random(5, 8),
        "c": random(5),
    }
    weights["c"] = random(5)
    weights |= {"bns": 1 + 0.2 * random(8), "bnm": random(8), "bnt": random(8, seed=2), "bnv": np.abs(random(8)) + 0.5}
    return build(nodes, {"x": ["N", 4, 6, 6]}, {"y": ["N", 5]}, weights)


def compressed(
    proto: onnx.ModelProto, level: str
) -> tuple[ir.Model, ir.Model, list[Site], dict[str, Solution], dict[str, object], list[object]]:
    """The folded model, the same with every layer rounded or perturbed, and what `correct` needs."""
    source = ir.from_proto(proto)
    norms = {str(n.outputs[0].name) for n in source.graph if n.op_type == "BatchNormalization"}
    model = raise_opset(fold(source)[0], 21)
    dense = model.clone()
    layers, _ = find_layers(model)
    sites = find_sites(model, layers, norms)
    writer, solutions, written = Writer(model), {}, {}
    for number, layer in enumerate(layers):
        solution = rounded(layer, parse_level(level))
        if level == "float":  # as if pruned: every row shrinks by another factor, and some noise
            noise = random(*layer.matrix().shape, seed=number)
            solution = Solution(solution.level, (0.7 * solution.weights + 0.2 * noise), None, None, None, 0.0)
        solutions[layer.name] = solution
        written[layer.name] = writer.weight(layer, solution)
    return dense, model, sites, solutions, written, layers  # type: ignore[return-value]


def all_moments(
    model: ir.Model, names: list[str], axes: list[int], feeds: list[dict[str, Array]]
) -> list[tuple[Array, Array]]:
    session = open_session(model, names, "cpu")
    found = [session.run(feed) for feed in feeds]
    return [moments([values[name] for values in found], axis) for name, axis in zip(names, axes, strict=True)]


CASES = {
    "layernorm": normalised("op")[0],
    "decomposed": normalised("decomposed")[0],
    "convolutional": convolutional(),
    "grouped": convolutional(groups=2),
    "shared bias": convolutional(shared=True),
}
KINDS = {
    "layernorm": ["bias", "norm", "bias"],
    "decomposed": ["bias", "norm", "bias"],
    "convolutional": ["batchnorm", "bias", "bias"],
    "grouped": ["batchnorm", "bias", "bias"],
    "shared bias": ["batchnorm", "bias", "bias"],
}


@pytest.mark.parametrize("level", ["float", "int3", "int4-asym"])
@pytest.mark.parametrize("case", CASES)
def test_statistics_come_back(case: str, level: str) -> None:
    proto = CASES[case]
    dense, model, sites, solutions, written, layers = compressed(proto, level)
    shape = [d.dim_value or 16 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": random(*shape, seed=seed)} for seed in (1, 2)]
    assert [site.kind for site in sites] == KINDS[case]
    names, axes = [site.value for site in sites], [site.axis for site in sites]
    before = all_moments(model, [str(s.node.outputs[0].name) for s in sites], axes, feeds)
    done, changed = correct(dense, model, sites, solutions, written, layers, feeds, device="cpu")  # type: ignore[arg-type]
    wanted = all_moments(dense, names, axes, feeds)
    after = all_moments(model, [str(s.node.outputs[0].name) for s in sites], axes, feeds)
    assert len(done) == len(sites)
    for site, (mean, spread), (mean_before, _), (mean_after, spread_after) in zip(
        sites, wanted, before, after, strict=True
    ):
        unit = np.abs(mean).max() + spread.max()
        # onnxruntime multiplies 4-bit weights of products with activations that it rounds to 8 bits
        close = 2e-2 if level == "int4-asym" and case in ("layernorm", "decomposed") else 2e-4
        np.testing.assert_allclose(mean_after, mean, atol=close * unit)
        assert np.abs(mean_before - mean).max() > 1e-3 * unit
        if site.kind != "bias":
            np.testing.assert_allclose(spread_after, spread, rtol=max(close, 5e-3))
    for layer in layers:
        before_, now = solutions[layer.name], changed[layer.name]  # type: ignore[attr-defined]
        if now.grid is not None:
            assert now.codes is before_.codes
            np.testing.assert_array_equal(now.weights, now.grid.dequantize(now.codes))


@pytest.mark.parametrize("level", ["float", "int3", "int4-asym"])
def test_the_file_holds_the_corrected_solutions(level: str, tmp_path: Path) -> None:
    dense, model, sites, solutions, written, layers = compressed(convolutional(), level)
    feeds = [{"x": random(8, 4, 6, 6)}]
    _, changed = correct(dense, model, sites, solutions, written, layers, feeds, device="cpu")  # type: ignore[arg-type]
    assert any(not np.array_equal(changed[name].weights, solutions[name].weights) for name in changed)
    save_model(model, tmp_path / "m.onnx")
    solved = {layer.name: Solved(layer, changed[layer.name], None) for layer in layers}  # type: ignore[attr-defined, arg-type]
    checks = check_weights(tmp_path / "m.onnx", solved, list(written.values()))  # type: ignore[arg-type]
    assert all(check.passed for check in checks), checks


def test_what_is_right_already_stays_as_it_is() -> None:
    proto = convolutional()
    model = fold(ir.from_proto(proto))[0]
    layers, _ = find_layers(model)
    sites = find_sites(model, layers, {"i"})
    before = ir.to_proto(model).SerializeToString()
    done, _ = correct(model.clone(), model, sites, {}, {}, layers, [{"x": random(4, 4, 6, 6)}], device="cpu")
    assert ir.to_proto(model).SerializeToString() == before
    assert all(one.mean_off < 1e-6 and abs(one.spread_off - 1) < 1e-6 for one in done)


def test_a_float_layer_takes_its_factor_too() -> None:
    """Layers that were not compressed sit behind ones that were; their statistics drift as well."""
    proto = convolutional()
    dense, model, sites, _, _, layers = compressed(proto, "float")
    feeds = [{"x": random(8, 4, 6, 6)}]
    correct(dense, model, sites, {}, {}, layers, feeds, device="cpu")  # type: ignore[arg-type]
    wanted, found = (all_moments(m, ["i"], [1], feeds)[0] for m in (dense, model))
    np.testing.assert_allclose(found[1], wanted[1], rtol=5e-3)


def test_moments_are_those_of_all_feeds_together() -> None:
    parts = [1000 + random(n, 5, 3, seed=n) for n in (4, 1, 7)]
    mean, spread = moments(parts, 1)
    whole = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(mean, whole.mean(axis=(0, 2)), rtol=1e-7)
    np.testing.assert_allclose(spread, whole.std(axis=(0, 2)), rtol=1e-4)


def test_factors_are_held_within_reason() -> None:
    site = Site("batchnorm", ir.node("Relu", [None]), "y", 1, 4, shift=(ir.node("Relu", [None]), 0))
    dense, found = random(500, 4), random(500, 4, seed=1)
    found[:, 0] *= 30
    found[:, 1] /= 30
    found[:, 2] = 3  # a channel that died, or never varied
    factor, shift, _ = affine([dense], [found], site)
    np.testing.assert_allclose(factor[:2], [0.5, 2])
    assert factor[2] == 1 and 0.9 < factor[3] < 1.1
    np.testing.assert_allclose((factor * found.astype(np.float64) + shift).mean(axis=0), dense.mean(axis=0), atol=1e-5)


def test_sites_that_cannot_be_corrected_are_left_out() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["bare"], name="bare"),
        helper.make_node("MatMul", ["bare", "b"], ["two"], name="two"),
        helper.make_node("Add", ["two", "beta"], ["three"]),
        helper.make_node("Sub", ["two", "three"], ["four"]),
        helper.make_node("MatMul", ["c", "four"], ["left"], name="left"),
        helper.make_node("Add", ["left", "x"], ["y"]),
    ]
    weights = {"a": random(6, 6), "b": random(6, 6), "c": random(6, 6), "beta": random(6)}
    model = ir.from_proto(build(nodes, {"x": [6, 6]}, {"y": [6, 6]}, weights))
    assert find_sites(model, find_layers(model)[0], ()) == []


def test_an_rms_norm_takes_a_factor_only() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["m"], name="a"),
        helper.make_node("Mul", ["m", "m"], ["sq"]),
        helper.make_node("ReduceMean", ["sq"], ["ms"], axes=[-1]),
        helper.make_node("Sqrt", ["ms"], ["rms"]),
        helper.make_node("Reciprocal", ["rms"], ["inverse"]),
        helper.make_node("Mul", ["m", "inverse"], ["n"]),
        helper.make_node("Mul", ["gamma", "n"], ["y"]),
    ]
    proto = build(nodes, {"x": ["N", 6]}, {"y": ["N", 8]}, {"a": random(6, 8), "gamma": 1 + 0.1 * random(8)})
    dense, model, sites, solutions, written, layers = compressed(proto, "float")
    (site,) = sites
    assert site.kind == "norm" and site.shift is None and site.gain is not None and site.gain[1] == 0
    feeds = [{"x": random(64, 6)}]
    correct(dense, model, sites, solutions, written, layers, feeds, device="cpu")  # type: ignore[arg-type]
    (wanted,), (found,) = (all_moments(m, ["y"], [-1], feeds) for m in (dense, model))
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-3)


def test_a_graph_output_that_is_dequantized_is_corrected_under_its_own_name() -> None:
    """Its node's output has another name by then."""
    from onnx_obc import Recipe
    from onnx_obc.calibration.ranges import RangeObserver
    from onnx_obc.plan import make_plan

    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="only")]
    proto = build(nodes, {"x": ["N", 4, 5, 5]}, {"y": ["N", 4, 5, 5]}, {"w": random(4, 4, 1, 1), "b": random(4)})
    plan = make_plan(ir.from_proto(proto), Recipe(weights="int8"))
    reference = plan.model.clone()
    sites = find_sites(plan.model, find_layers(plan.model)[0], ())
    feeds = [{"x": random(16, 4, 5, 5)}]
    ranges = {}
    for activation in plan.activations:
        observer = ranges[activation.value] = RangeObserver()
        observer.update(feeds[0]["x"] if activation.value == "x" else run(proto, feeds[0])[0], 16)
    (layer,) = plan.layers
    half = Solution(parse_level("float"), 0.5 * layer.matrix() + 0.3, None, None, None, 0.0)
    written, _, _ = write(plan, {"only": Solved(layer, half, None)}, ranges, Recipe())  # type: ignore[arg-type]
    assert sites[0].value == "y" != sites[0].node.outputs[0].name
    by_name = {weight.layer: weight for weight in written}
    correct(reference, plan.model, sites, {"only": half}, by_name, plan.layers, feeds, device="cpu")
    wanted, found = run(proto, feeds[0])[0], open_session(plan.model, device="cpu").run(feeds[0])["y"]
    np.testing.assert_allclose(found.mean(axis=(0, 2, 3)), wanted.mean(axis=(0, 2, 3)), atol=0.1)


def test_on_a_real_model_the_output_loss_falls() -> None:
    source = read_model(MODEL)
    dense, model, sites, solutions, written, layers = compressed(ir.to_proto(source), "int3")
    with np.load(CALIBRATION) as arrays:
        image = arrays["image"]
    feeds = [{"image": image[start : start + 32]} for start in range(0, 128, 32)]
    held_out = {"image": image[256:384]}
    expected = open_session(dense, device="cpu").run(held_out)

    def loss() -> float:
        total = OutputLoss(class_scores(dense))
        total.add(expected, open_session(model, device="cpu").run(held_out))
        return total.value

    before = loss()
    correct(dense, model, sites, solutions, written, layers, feeds, device="cpu")  # type: ignore[arg-type]
    assert loss() < 0.5 * before


def test_a_correction_that_hurts_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_obc import DataOptions, Recipe, compress

    losses = iter([1.0, 2.0, 1.5, 0.5])  # at first, after all, after batchnorm alone, after bias alone
    monkeypatch.setattr(Judge, "loss", lambda self, model: next(losses))
    recipe = Recipe(weights="int3", activations="none", verify=False)
    data = DataOptions(samples=64)
    result = compress(MODEL, CALIBRATION, recipe, data=data)
    assert [(x.kinds, x.kept) for x in result.report.corrections] == [
        (("batchnorm", "bias"), False), (("batchnorm",), False), (("bias",), True),
    ]  # fmt: skip
    plain = compress(MODEL, CALIBRATION, recipe.model_copy(update={"correct": False}), data=data).model
    values = {name: value.const_value.numpy() for name, value in plain.graph.initializers.items()}
    changed = [
        n for n, v in result.model.graph.initializers.items() if not np.array_equal(v.const_value.numpy(), values[n])
    ]
    assert changed == ["classifier.2.bias"]


def test_live_tensors_are_few() -> None:
    """At no site are there more values than those that cross it."""
    dense, model, sites, solutions, written, layers = compressed(convolutional(), "float")
    held: list[int] = []
    advance = Stepper.advance

    def watched(stepper: Stepper, names: list[str]) -> list[dict[str, Array]]:
        found = advance(stepper, names)
        held.append(len(stepper._live[0]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "advance", watched)
        correct(dense, model, sites, solutions, written, layers, [{"x": random(4, 4, 6, 6)}], device="cpu")  # type: ignore[arg-type]
    assert max(held) == 1
