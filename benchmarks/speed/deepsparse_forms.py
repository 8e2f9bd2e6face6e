"""Which written form DeepSparse runs fast: Q/DQ, integer operators with a scale for every channel, or with one scale.

    python -m benchmarks.speed.deepsparse_forms

Weights are rounded, and the smallest blocks of four along the input channels are zero: time does not ask how good they
are. Each file is timed against the dense float32 file in the same engine, in turn. Writes
benchmarks/results/deepsparse_forms.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.common.subjects import find_subjects
from benchmarks.common.tables import machine, markdown
from benchmarks.speed.runtimes import feed_of
from onnx_obc import ObcError, Recipe
from onnx_obc.calibration.capture import Chunk, capture
from onnx_obc.calibration.samples import Batch, Samples
from onnx_obc.core.arrays import Feed
from onnx_obc.core.level import Block, parse_choice
from onnx_obc.graph.fold import remove_unused
from onnx_obc.graph.model import read_model
from onnx_obc.graph.save import save_model
from onnx_obc.graph.write import Writer
from onnx_obc.pipeline.plan import make_plan, possible, prepare
from onnx_obc.pipeline.speed import subject_of
from onnx_obc.runtime.session import Execution
from onnx_obc.solver.baselines import uncompensated
from onnx_obc.targets.bench import bench
from onnx_obc.targets.engine import batch_of
from onnx_obc.targets.registry import TARGETS, save_for

RESULTS = Path(__file__).parents[1] / "results"
BATCHES = {"ResNet-56": (1, 64), "EfficientNet-Lite0": (1, 16), "MiniLM": (1, 8)}
SPARSITIES = (0.0, 0.5, 0.75, 0.9)


def write(dense: ir.Model, feed: Feed, sparsity: float, one_scale: bool, form: str, path: Path) -> None:
    """The model at 8w8a in one of the forms, with this share of blocks zero wherever the channels divide."""
    recipe, subject = Recipe(target="deepsparse"), subject_of(prepare(dense))
    choice = parse_choice("8w8a")
    profile = {x.name: choice for x in subject.layers if possible(x, choice, "deepsparse") is None}
    plan = make_plan(prepare(dense), recipe, profile)
    batch = Batch({name: np.asarray(array) for name, array in feed.items()}, 0, batch_of(feed))
    samples = Samples(batch.count, "feed", lambda a, b: iter([batch]), step=batch.count, batch=batch.count)
    values = tuple(dict.fromkeys(activation.value for activation in plan.activations))
    ranges = capture(plan.model, Chunk((), values), samples, execution=Execution("cpu")).ranges
    writer = Writer(plan.model)
    for layer in plan.layers:
        level = choice.level
        if sparsity and layer.channels % 4 == 0:
            level = type(level)(Block(4, sparsity), level.bits)
        writer.weight(layer, uncompensated(layer.matrix(), level, "minmax", one_scale))
    for activation in plan.activations:
        writer.activation(
            activation, *ranges[activation.value].interval("minmax", activation.bits, activation.symmetric)
        )
    remove_unused(plan.model)
    if form == "Q/DQ":
        plan.model.ir_version = 8
        save_model(plan.model, path)
    else:
        save_for("deepsparse", plan.model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("work-models"), help="what tools/export_models.py wrote")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--only", choices=list(BATCHES), action="append", help="only this model; may be given again")
    options = parser.parse_args()
    try:
        version = TARGETS["deepsparse"].engine.version()
    except ObcError as error:
        sys.exit(str(error))
    assert TARGETS["deepsparse"].shared_scale
    parts = []
    with tempfile.TemporaryDirectory() as scratch:
        for subject in find_subjects(options.models, options.shared, Path(scratch), tuple(options.only or BATCHES)):
            dense, cells = read_model(subject.path), []
            for batch in BATCHES[subject.name]:
                feed = feed_of(subject, batch)
                for form, one_scale in (("Q/DQ", False), ("a scale for every channel", False), ("one scale", True)):
                    ratios = []
                    for sparsity in SPARSITIES:
                        path = Path(scratch) / "model.onnx"
                        write(dense, feed, sparsity, one_scale, form, path)
                        found = bench((subject.path, path), "deepsparse", feed, rounds=7).files[1]
                        ratios.append(f"{found.ratio:.2f}")
                    cells.append((str(batch), form, *ratios))
                    print(subject.name, *cells[-1], flush=True)
            header = ("batch", "form", *(f"{100 * sparsity:.0f} % zero" for sparsity in SPARSITIES))
            parts.append(f"## {subject.name}\n\n{markdown(header, cells, left=2)}\n")
    (RESULTS / "deepsparse_forms.md").write_text(
        f"""# Written forms in DeepSparse

`python -m benchmarks.speed.deepsparse_forms`, {version}, on {machine()}: times faster than dense float32 in the same
engine, all layers at 8w8a. *Q/DQ*: with a scale for every channel. The others are integer operators, ConvInteger and
MatMulInteger.

{chr(10).join(parts)}"""
    )


if __name__ == "__main__":
    main()
