"""Statistics after correction are those of the dense model, measured on whole models by another program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from digits import CALIBRATION, MODEL
from onnx import helper, numpy_helper
from small_graphs import Array, build, random
from written import rounded

from onnx_obc import Recipe, compress
from onnx_obc.calibration.options import DataOptions
from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.core.level import FLOAT, Level, parse_level
from onnx_obc.core.solution import Solution
from onnx_obc.correction.sites import Kind, Site, find_sites
from onnx_obc.correction.statistics import WrittenLayer, correct, scaled
from onnx_obc.graph.fold import fold, remove_unused
from onnx_obc.graph.layers import Layer, find_layers
from onnx_obc.graph.model import read_model
from onnx_obc.graph.opset import raise_opset
from onnx_obc.graph.write import Activation, Writer, WrittenWeight
from onnx_obc.pipeline.layer import Solved
from onnx_obc.pipeline.plan import make_plan, prepare
from onnx_obc.pipeline.verify import check_weights
from onnx_obc.runtime.judge import Judge
from onnx_obc.runtime.session import Execution, open_session

node = helper.make_node
NEAR = 1e-4


def perturbed(layer: Layer, level: Level = FLOAT) -> Solution:
    """A layer's weights, of which every row has lost something and got another scale; rounded if the level says so."""
    weights = layer.matrix()  # (groups, rows, columns)
    noise = random(*weights.shape, seed=9) * weights.std()
    gain = np.exp(0.3 * random(*weights.shape[:2], 1, seed=8))
    other = layer.tensor((gain * weights + 0.2 * noise).astype(np.float32))
    solution: Solution = rounded(replace(layer, weight=other), level)
    return solution


@dataclass
class Case:
    """A model that layers were written into, and what it was before."""

    dense: ir.Model
    written: ir.Model
    layers: list[Layer]
    sites: list[Site]
    solutions: dict[str, Solution]
    weights: dict[str, WrittenWeight]

    def correct(self, feeds: Sequence[dict[str, Array]], kinds: Sequence[Kind] = ("batchnorm", "norm", "bias")) -> None:
        sites = [site for site in self.sites if site.kind in kinds]
        layers = {
            x.name: WrittenLayer(x, self.solutions[x.name], self.weights[x.name])
            for x in self.layers
            if x.name in self.solutions
        }
        execution = Execution("cpu", 1)
        self.found, self.corrected = correct(self.dense, self.written, sites, layers, feeds, execution=execution)

    def check(self, path: Path) -> None:
        """The file holds the returned solutions bit for bit, and the integers that it held before."""
        ir.save(self.written, path)
        by_name = {layer.name: layer for layer in self.layers}
        solved = {name: Solved(by_name[name], new, None) for name, new in self.corrected.items()}  # type: ignore[arg-type]
        checks = check_weights(path, solved, list(self.weights.values()))
        assert [check.detail for check in checks if not check.passed] == []
        for name, solution in self.solutions.items():
            new = self.corrected[name]
            assert new.codes is solution.codes and new.mask is solution.mask
            assert new.weights.dtype == np.float32 and new.weights.shape == solution.weights.shape


def case(
    proto: onnx.ModelProto,
    level: str = "float",
    skip: Sequence[str] = (),
    activations: Mapping[str, float] | None = None,
) -> Case:
    """Write every layer but those skipped, perturbed and at a level; quantize activations up to what they are given."""
    norms = {n.output[0] for n in proto.graph.node if n.op_type == "BatchNormalization"}
    model, _ = fold(ir.from_proto(proto))
    assert not any(n.op_type == "BatchNormalization" for n in model.graph)
    model = raise_opset(model, 21) if model.opset_imports[""] < 21 else model
    layers, _ = find_layers(model)
    dense, sites = model.clone(), find_sites(model, layers, norms)
    solutions = {layer.name: perturbed(layer, parse_level(level)) for layer in layers if layer.name not in skip}
    writer = Writer(model)
    weights = {x.name: writer.weight(x, solutions[x.name]) for x in layers if x.name in solutions}
    values = {str(value.name): value for n in model.graph for value in n.outputs}
    for name, most in (activations or {}).items():
        readers = tuple(values[name].uses())
        writer.activation(Activation(name, 8, False, readers, True), -most, most)
    remove_unused(model)
    return Case(dense, model, layers, sites, solutions, weights)


def statistics(
    model: ir.Model, wanted: Mapping[str, int], feeds: Sequence[dict[str, Array]]
) -> dict[str, tuple[Array, Array]]:
    """Mean and standard deviation per channel of values, named with their axes, by running the whole model.

    With the optimisations of onnxruntime, which multiplies quantized weights by activations that it quantizes itself.
    """
    session = open_session(model, list(wanted), "cpu", threads=1)
    runs = [session.run(feed) for feed in feeds]
    found = {}
    for name, axis in wanted.items():
        parts = [np.moveaxis(values[name], axis, 0).reshape(values[name].shape[axis], -1) for values in runs]
        whole = np.concatenate(parts, axis=1).astype(np.float64)  # (channels, positions)
        found[name] = (whole.mean(axis=1), whole.std(axis=1))
    return found


def assert_corrected(case: Case, feeds: Sequence[dict[str, Array]], near: float = NEAR) -> None:
    """At every site the means are the dense model's, and the standard deviations where there is a factor."""
    now = {site.value: str(site.node.outputs[0].name) for site in case.sites}
    dense = statistics(case.dense, {site.value: site.axis for site in case.sites}, feeds)
    found = statistics(case.written, {now[site.value]: site.axis for site in case.sites}, feeds)
    for site in case.sites:
        (mean, spread), (new_mean, new_spread) = dense[site.value], found[now[site.value]]
        scale = spread.max()
        if site.shift is not None:
            np.testing.assert_allclose(new_mean, mean, rtol=0, atol=near * scale, err_msg=site.value)
        if site.kind != "bias":
            np.testing.assert_allclose(new_spread, spread, rtol=0, atol=near * scale, err_msg=site.value)


def batchnorm(channels: int, prefix: str) -> dict[str, Array]:
    return {f"{prefix}{i}": np.abs(random(channels, seed=i)) + 0.5 for i in range(4)}


def convolutions() -> onnx.ModelProto:
    """Convolutions with and without bias and BatchNormalization, grouped and transposed, and a Gemm at the end."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["a", "n0", "n1", "n2", "n3"], ["b"]),
        node("Relu", ["b"], ["r"]),
        node("Conv", ["r", "v"], ["c"], name="grouped", group=2),
        node("BatchNormalization", ["c", "k0", "k1", "k2", "k3"], ["kc"]),
        node("Relu", ["kc"], ["s"]),
        node("ConvTranspose", ["s", "u"], ["t"], name="transposed", group=2),
        node("BatchNormalization", ["t", "m0", "m1", "m2", "m3"], ["d"]),
        node("Relu", ["d"], ["e"]),
        node("Conv", ["e", "o"], ["q"], name="plain"),
        node("GlobalAveragePool", ["q"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g", "gb"], ["h"], name="middle", transB=1),
        node("BatchNormalization", ["h", "l0", "l1", "l2", "l3"], ["hl"]),
        node("Relu", ["hl"], ["hr"]),
        node("Gemm", ["hr", "z", "zb"], ["y"], name="head"),
    ]
    weights = {"w": random(6, 4, 3, 3), "v": random(4, 3, 3, 3), "u": random(4, 5, 2, 2), "o": random(6, 10, 1, 1)}
    weights |= {"g": random(7, 6), "gb": random(7), "z": random(7, 3), "zb": random(1, 3)}
    weights |= batchnorm(6, "n") | batchnorm(4, "k") | batchnorm(10, "m") | batchnorm(7, "l")
    return build(nodes, {"x": ("N", 4, 8, 8)}, {"y": ("N", 3)}, weights)


IMAGES = [{"x": random(count, 4, 8, 8, seed=count)} for count in (5, 8, 3)]


def transformer(whole: bool) -> onnx.ModelProto:
    """x + W x, a LayerNorm (one node, or as it is decomposed), an RMSNorm, and another product."""
    norm = [node("LayerNormalization", ["s", "g", "b"], ["n"], epsilon=1e-5)]
    if not whole:
        norm = [
            node("ReduceMean", ["s"], ["m"], axes=[-1]),
            node("Sub", ["s", "m"], ["c"]),
            node("Mul", ["c", "c"], ["cc"]),
            node("ReduceMean", ["cc"], ["var"], axes=[-1]),
            node("Add", ["var", "epsilon"], ["ve"]),
            node("Sqrt", ["ve"], ["sd"]),
            node("Div", ["c", "sd"], ["unit"]),
            node("Mul", ["unit", "g"], ["gained"]),
            node("Add", ["gained", "b"], ["n"]),
        ]
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("Add", ["h", "wb"], ["a"]),
        node("Add", ["a", "x"], ["s"]),
        *norm,
        node("MatMul", ["n", "u"], ["i"], name="second"),
        node("Add", ["ub", "i"], ["j"]),
        node("Mul", ["j", "j"], ["jj"]),
        node("ReduceMean", ["jj"], ["ms"], axes=[-1]),
        node("Add", ["ms", "epsilon"], ["me"]),
        node("Sqrt", ["me"], ["root"]),
        node("Div", ["j", "root"], ["rms"]),
        node("Mul", ["rms", "rg"], ["y"]),
    ]
    weights = {"w": random(8, 8), "wb": random(8), "u": random(8, 6), "ub": random(1, 1, 6), "rg": random(6)}
    weights |= {"g": random(8, seed=3), "b": random(8, seed=4), "epsilon": np.array(1e-5, np.float32)}
    return build(nodes, {"x": ("N", "T", 8)}, {"y": ("N", "T", 6)}, weights)


TOKENS = [{"x": random(2, length, 8, seed=length)} for length in (9, 30, 17)]


def groups() -> onnx.ModelProto:
    """GroupNormalization and InstanceNormalization behind convolutions."""
    nodes = [
        node("Conv", ["x", "w", "wb"], ["a"], name="first"),
        node("GroupNormalization", ["a", "g", "b"], ["n"], num_groups=2),
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "v"], ["c"], name="second"),
        node("InstanceNormalization", ["c", "k", "l"], ["y"]),
    ]
    weights = {"w": random(6, 4, 3, 3), "wb": random(6), "v": random(4, 6, 1, 1)}
    weights |= {"g": random(6, seed=1), "b": random(6, seed=2), "k": random(4, seed=1), "l": random(4, seed=2)}
    return build(nodes, {"x": ("N", 4, 8, 8)}, {"y": ("N", 4, 6, 6)}, weights, opset=21, ir_version=10)


GRAPHS = {
    "convolutions": (convolutions(), IMAGES, 6),
    "transformer": (transformer(whole=True), TOKENS, 4),
    "decomposed": (transformer(whole=False), TOKENS, 4),
    "groups": (groups(), IMAGES, 4),
}


@pytest.mark.parametrize("level", ["float", "int8", "int4-asym"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_statistics_are_those_of_the_dense_model(graph: str, level: str, tmp_path: Path) -> None:
    proto, feeds, count = GRAPHS[graph]
    found = case(proto, level)
    assert len(found.sites) == count
    before = {x.name: x.const_value.numpy() for x in found.written.graph.initializers.values() if x.const_value}
    with pytest.raises(AssertionError):
        assert_corrected(found, feeds)
    found.correct(feeds)
    assert_corrected(found, feeds)
    found.check(tmp_path / "model.onnx")
    for weight in found.weights.values():
        if weight.codes is not None:
            after = found.written.graph.initializers[weight.codes].const_value
            assert after is not None and np.array_equal(after.numpy(), before[weight.codes])
    assert [site.value for site in found.sites] == [done.value for done in found.found]


@pytest.mark.parametrize("skip", ["first", "grouped", "transposed", "middle"])
def test_a_layer_left_in_float_takes_its_factor_into_its_weight(skip: str, tmp_path: Path) -> None:
    found = case(convolutions(), "int8", skip=[skip])
    found.correct(IMAGES)
    assert_corrected(found, IMAGES)
    assert skip not in found.corrected
    found.check(tmp_path / "model.onnx")


def test_nothing_changes_before_the_first_layer_that_was_written() -> None:
    found = case(convolutions(), "int8", skip=["first", "grouped", "transposed"])
    before = {x.name: x.const_value for x in found.written.graph.initializers.values()}
    found.correct(IMAGES)
    first, grouped, transposed, plain, *_ = found.found
    assert [(x.mean_off, x.spread_off) for x in (first, grouped, transposed)] == [(0, 0)] * 3 and plain.mean_off > 0.1
    after = {x.name: x.const_value for x in found.written.graph.initializers.values()}
    for site in found.sites[:3]:
        for value in site.node.inputs[1:]:
            assert value is not None and after[value.name] is before[value.name]


def test_a_model_that_is_as_it_was_stays_so() -> None:
    found = case(transformer(whole=True), skip=["first", "second"])
    before = ir.to_proto(found.written).SerializeToString()
    found.correct(TOKENS)
    assert ir.to_proto(found.written).SerializeToString() == before
    assert all(done.mean_off == done.spread_off == 0 for done in found.found)


def test_later_sites_see_the_corrections_of_earlier_ones() -> None:
    """Corrected at once, on the uncorrected prefix, the second site would be wrong."""
    found = case(convolutions(), "int4")
    sites = [site for site in found.sites if site.kind == "batchnorm"][:2]
    alone = case(convolutions(), "int4")
    alone.sites = [site for site in alone.sites if site.value == sites[1].value]
    found.sites = sites
    found.correct(IMAGES)
    alone.correct(IMAGES)
    assert_corrected(found, IMAGES)
    assert_corrected(alone, IMAGES)
    one, other = (
        each.corrected["grouped"].grid.scale for each in (found, alone)  # type: ignore[union-attr]
    )  # fmt: skip
    assert np.abs(one / other - 1).max() > 0.01


def test_only_what_was_asked_for() -> None:
    found = case(convolutions(), "int8")
    found.correct(IMAGES, ["bias"])
    assert [done.value for done in found.found] == [site.value for site in found.sites if site.kind == "bias"]
    assert all(found.corrected[name] is solution for name, solution in found.solutions.items())


def test_a_shared_bias_stays_what_it_is_for_others() -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="left"),
        node("Conv", ["x", "v", "b"], ["d"], name="right"),
        node("Add", ["c", "d"], ["s"]),
        node("Unsqueeze", ["b", "axes"], ["e"]),
        node("Add", ["s", "e"], ["y"]),
    ]
    weights = {"w": random(4, 4, 1, 1), "v": random(4, 4, 1, 1, seed=1), "b": random(4)}
    proto = build(nodes, {"x": ("N", 4, 8, 8)}, {"y": ("N", 4, 8, 8)}, weights)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "axes"))
    model = ir.from_proto(proto)  # folding would make the Unsqueeze a constant
    layers, _ = find_layers(model)
    dense, sites = model.clone(), find_sites(model, layers, ())
    solutions = {layer.name: perturbed(layer) for layer in layers}
    writer = Writer(model)
    found = Case(dense, model, layers, sites, solutions, {x.name: writer.weight(x, solutions[x.name]) for x in layers})
    found.correct(IMAGES)
    assert_corrected(found, IMAGES)
    left, right = (site.node.inputs[2] for site in sites)
    assert left is not None and right is not None and len({left.name, right.name, "b"}) == 3
    kept = model.graph.initializers["b"].const_value
    assert kept is not None and np.array_equal(kept.numpy(), weights["b"])


def test_a_shared_norm_stays_what_it_is_for_others() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="first"),
        node("LayerNormalization", ["h", "g", "b"], ["n"]),
        node("LayerNormalization", ["x", "g", "b"], ["m"]),
        node("Add", ["n", "m"], ["y"]),
    ]
    weights = {"w": random(8, 8), "g": random(8), "b": random(8, seed=1)}
    found = case(build(nodes, {"x": ("N", "T", 8)}, {"y": ("N", "T", 8)}, weights))
    found.correct(TOKENS)
    assert_corrected(found, TOKENS)
    for name in "gb":
        kept = found.written.graph.initializers[name].const_value
        assert kept is not None and np.array_equal(kept.numpy(), weights[name])


def test_a_graph_output_that_became_a_dequantized_value() -> None:
    nodes = [node("Conv", ["x", "w"], ["c"], name="only"), node("BatchNormalization", ["c", *"0123"], ["y"])]
    weights = {"w": 0.3 * random(6, 4, 3, 3)} | batchnorm(6, "")
    found = case(build(nodes, {"x": ("N", 4, 8, 8)}, {"y": ("N", 6, 6, 6)}, weights), "int8", activations={"y": 8})
    (site,) = found.sites
    assert site.value == "y" and site.node.outputs[0].name != "y" == found.written.graph.outputs[0].name
    found.correct(IMAGES)
    assert_corrected(found, IMAGES)


def test_quantized_activations_in_between(tmp_path: Path) -> None:
    """The prefix of a site is what the written model computes, with its quantized activations."""
    found = case(convolutions(), "int8", activations={"r": 30, "s": 100, "e": 400})
    found.correct(IMAGES)
    assert_corrected(found, IMAGES, 2e-3)  # a value at the edge of a step may fall on the other side of it
    found.check(tmp_path / "model.onnx")


@pytest.mark.parametrize("level", ["float", "int4-asym", "int8"])
def test_scaled_solutions_are_what_their_codes_stand_for(level: str) -> None:
    model, _ = fold(ir.from_proto(convolutions()))
    layer = next(layer for layer in find_layers(model)[0] if layer.name == "grouped")
    solution = rounded(layer, parse_level(level))
    factor = np.array([0.5, 1.1, 1, 2])
    new = scaled(solution, factor)
    assert new.weights.dtype == np.float32 and new.codes is solution.codes
    np.testing.assert_allclose(new.weights, solution.weights * factor.reshape(2, 2, 1), rtol=1e-6)
    if new.grid is not None and new.codes is not None:
        assert new.grid.scale.dtype == np.float32
        assert np.array_equal(new.weights, new.grid.dequantize(new.codes))


@pytest.mark.parametrize("kinds", [("batchnorm",), ("batchnorm", "norm", "bias")])
def test_the_outputs_of_the_small_classifier_come_closer(kinds: Sequence[Kind], tmp_path: Path) -> None:
    source = read_model(MODEL)
    norms = {str(n.outputs[0].name) for n in source.graph if n.op_type == "BatchNormalization"}
    plan = make_plan(prepare(source), Recipe(weights="int3", activations="none"))
    layers = list(plan.layers)
    dense, sites = plan.model.clone(), find_sites(plan.model, layers, norms)
    solutions = {layer.name: rounded(layer, plan.choices[layer.name].level) for layer in layers}
    writer = Writer(plan.model)
    weights = {layer.name: writer.weight(layer, solutions[layer.name]) for layer in layers}
    remove_unused(plan.model)
    found = Case(dense, plan.model, layers, sites, solutions, weights)
    images = np.load(CALIBRATION)["image"]
    feeds = [{"image": images[start : start + 64]} for start in range(0, 256, 64)]
    samples = Samples(len(images) - 256, "images", lambda a, b: iter([Batch({"image": images[256:][a:b]}, a, b - a)]))
    judge = Judge(dense, list(samples.feeds()), Execution("cpu", 1))
    before = judge.loss(found.written)
    found.correct(feeds, kinds)
    assert judge.loss(found.written) < 0.8 * before
    found.check(tmp_path / "model.onnx")


@pytest.mark.slow
def test_in_the_pipeline(tmp_path: Path) -> None:
    """What is kept is verified, and said to have helped; without it the file is another one."""
    recipe = Recipe(weights="int3", activations="none", sequential=False, device="cpu", threads=1)
    options = DataOptions(samples=256)
    plain = compress(MODEL, CALIBRATION, recipe.model_copy(update={"effort": "fast"}), data=options).report
    report = compress(MODEL, CALIBRATION, recipe, tmp_path / "model.onnx", data=options).report
    (done,) = report.corrections
    assert done.kept and done.kinds == ("batchnorm", "bias") and done.loss_after < done.loss_before
    assert all(check.passed for check in report.checks)
    assert report.output_loss is not None and plain.output_loss is not None
    assert plain.corrections == () and report.output_loss < plain.output_loss
