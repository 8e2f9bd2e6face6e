"""Transformers at the levels that they are shipped at, against onnxruntime's quantizers and NNCF on the same data.

    python -m benchmarks.peers.environments nncf             # once: NNCF runs in an environment of its own
    python -m benchmarks.transformers                        # the language model, Whisper's three files, and MiniLM
    python -m benchmarks.transformers --only LanguageModel --again
    python -m benchmarks.transformers --table                # run nothing, only write the page again

A finished row is kept in benchmarks/results/transformers.jsonl at once, and rows that are there are not run again.
Speeds do not depend on what the weights are: they are measured at the end, on files whose weights are rounded.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from benchmarks.common.evaluation import Score, output_loss
from benchmarks.common.harness import Row, Rows, arguments, measure
from benchmarks.common.language import WRITTEN, generation
from benchmarks.common.processes import run, shortened
from benchmarks.common.subjects import DECODERS, Subject, open_data
from benchmarks.common.tables import machine, markdown
from benchmarks.peers.environments import ENVIRONMENTS, python_of
from benchmarks.peers.run import DRIVERS, write_calibration
from onnx_obc import DataOptions, ObcError
from onnx_obc.core.arrays import Feed
from onnx_obc.pipeline.compress import compress
from onnx_obc.pipeline.recipe import Recipe
from onnx_obc.targets.bench import bench

NAMES = (*DECODERS, "MiniLM")
RECIPES: dict[str, dict[str, Any]] = {
    "int4, blocks of 32": {"weights": "int4", "activations": "none", "block": 32},
    "int8": {"weights": "int8"},
    "int8, weights alone": {"weights": "int8", "activations": "none"},
    "dynamic int8": {"weights": "int8", "activations": "dynamic"},
    "int8, activations of 16 bits": {"weights": "int8", "activations": "int16"},
    "2:4": {"weights": "float", "activations": "none", "sparsity": "2:4"},
}
TIME_LIMITS = {"Whisper": 30.0}  # seconds for solving all layers of a file
OURS, ROUNDING = "onnx-obc", "rounding"
ENGINES = ("onnxruntime", "openvino")
ROUNDS = 7
THEIR_SAMPLES = 128  # NNCF's own default
THEIR_SECONDS = 1800  # that NNCF may take for a file


@dataclass(frozen=True)
class ModelFiles:
    """A model's files to be compressed.

    sources: each with its calibration data; options: to read that with.
    """

    sources: Mapping[Path, object]
    options: DataOptions

    @property
    def folder(self) -> bool:
        """Whether they are several, which lie in one."""
        return len(self.sources) > 1

    def into(self, out: Path) -> list[tuple[Path, Path]]:
        """The files, and where each goes if the model goes to `out`."""
        if not self.folder:
            return [(path, out) for path in self.sources]
        out.mkdir(exist_ok=True)
        return [(path, out / path.name) for path in self.sources]


def quantize_dynamic(source: Path, target: Path, files: ModelFiles) -> None:
    """Weights of 8 bits, activations quantized as they come."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    quantize(source, target, weight_type=QuantType.QInt8, per_channel=True)


def matmul_nbits(source: Path, target: Path, files: ModelFiles) -> None:
    """Weights rounded to 4 bits, with a scale and zero point for each 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)


def nncf(method: str) -> Callable[[Path, Path, ModelFiles], None]:
    """NNCF's weight compression, in its own environment. The function raises RuntimeError where it fails."""

    def compress_weights(source: Path, target: Path, files: ModelFiles) -> None:
        with tempfile.TemporaryDirectory() as folder:
            feeds, log = Path(folder) / "calibration", Path(folder) / "log.txt"
            write_calibration(source, files.sources[source], replace(files.options, samples=THEIR_SAMPLES), feeds)
            command: list[str | Path] = [
                *(python_of("nncf", ENVIRONMENTS), DRIVERS / "use_nncf.py"),
                *("--model", source.absolute(), "--calibration", feeds),
                *("--method", method, "--output", target.absolute()),
            ]
            ended = run(command, Path(folder), log, THEIR_SECONDS)
            if ended.error is not None:
                raise RuntimeError(ended.error)

    return compress_weights


THEIR_OWN: dict[tuple[str, str], Callable[[Path, Path, ModelFiles], None]] = {
    ("dynamic int8", "onnxruntime"): quantize_dynamic,
    ("int4, blocks of 32", "onnxruntime"): matmul_nbits,
    ("int4, blocks of 32", "NNCF"): nncf("int4, blocks of 32"),
    ("int4, blocks of 32", "NNCF, AWQ and scale estimation"): nncf("int4, blocks of 32, AWQ and scale estimation"),
    ("int8, weights alone", "NNCF"): nncf("int8, weights alone"),
}


def levels(subject: Subject, rows: Rows, scratch: Path) -> None:
    """Add the rows of a model that are missing, and the speeds of all."""
    dense = subject.score(subject.path, None)
    files = ModelFiles(calibration(subject), subject.options)
    add(subject, rows, "float", "dense", dense, dense, subject.path)
    out = scratch / ("compressed" if files.folder else "compressed.onnx")
    tools = (OURS,) if files.folder else (OURS, ROUNDING)  # which takes long
    ours = [(level, tool) for level in RECIPES for tool in tools if (subject.name, level, tool) not in rows]
    for level, tool in ours:
        began = time.perf_counter()
        solver = "auto" if tool == OURS else "baseline"
        loss = own(subject, files, out, {**RECIPES[level], "solver": solver})
        seconds = time.perf_counter() - began
        score = subject.score(out, dense.predictions)
        add(subject, rows, level, tool, dense, score, out, layer_loss=loss, seconds=seconds)
    for level, tool in THEIR_OWN:
        if (subject.name, level, tool) in rows or not available(tool):
            continue
        began = time.perf_counter()
        try:
            theirs(files, out, level, tool)
            seconds = time.perf_counter() - began
            score = subject.score(out, dense.predictions)
        except Exception as error:  # what refuses such a file raises a type of its own
            rows.add({"model": subject.name, "level": level, "tool": tool, "error": shortened(str(error))})
            continue
        add(subject, rows, level, tool, dense, score, out, seconds=seconds)
    speeds(subject, files, rows, out)


def own(subject: Subject, files: ModelFiles, out: Path, recipe: Mapping[str, Any]) -> float:
    """Compress a model's files by this tool; the sum of the layers' losses."""
    loss = 0.0
    for source, target in files.into(out):
        chosen = Recipe(**recipe, time_limit=TIME_LIMITS.get(subject.name), measure_speed=False)
        report = compress(source, files.sources[source], chosen, target, data=files.options).report
        loss += sum(layer.loss for layer in report.layers)
        print(f"{target.name}: {report.seconds}", *report.notes, sep="\n  ", flush=True)
    return loss


def available(tool: str) -> bool:
    """Whether another tool is here."""
    here = not tool.startswith("NNCF") or python_of("nncf", ENVIRONMENTS).exists()
    if not here:
        print(f"{tool} is skipped: no environment; see python -m benchmarks.peers.environments")
    return here


def theirs(files: ModelFiles, out: Path, level: str, tool: str) -> None:
    """Compress a model's files by another tool."""
    for source, target in files.into(out):
        THEIR_OWN[level, tool](source, target, files)


def speeds(subject: Subject, files: ModelFiles, rows: Rows, out: Path) -> None:
    """How many times faster than the dense model the file of each row is, in each engine."""
    runs = timed_runs(subject)
    for row in [row for row in rows.rows if row["model"] == subject.name]:
        level, tool = row["level"], row["tool"]
        if "speed" in row or "error" in row or tool in ("dense", ROUNDING) or not available(tool):
            continue
        if tool == OURS:
            own(subject, files, out, {**RECIPES[level], "solver": "baseline", "verify": False, "effort": "fast"})
        else:
            theirs(files, out, level, tool)
        rows.add({**row, "speed": {engine: speed(files.into(out), runs, engine) for engine in ENGINES}})


def timed_runs(subject: Subject) -> list[tuple[str, Feed, int]]:
    """What is timed: the files by name, what each is fed, and how often it runs."""
    if subject.path.is_dir():
        from benchmarks.common import speech  # which imports transformers

        return speech.transcription(subject.path, subject.calibration)
    feeds = open_data(ir.load(subject.path), subject.calibration, replace(subject.options, samples=1)).feeds()
    runs = generation(feeds) if subject.name in DECODERS else [(next(feeds), 1)]
    return [(subject.path.name, feed, count) for feed, count in runs]


def speed(pairs: Sequence[tuple[Path, Path]], runs: Sequence[tuple[str, Feed, int]], engine: str) -> float | str:
    """How many times faster the second files are than the first, run in turn; or what the engine says of them."""
    sources = {source.name: (source, target) for source, target in pairs}
    before = after = 0.0
    for name, feed, count in runs:
        try:
            first, second = bench(sources[name], engine, feed, rounds=ROUNDS).files
        except ObcError as error:
            return shortened(str(error))
        before += count * first.seconds
        after += count * second.seconds
    return before / after


def calibration(subject: Subject) -> Mapping[Path, object]:
    """The model's files, and what each is calibrated on."""
    if not subject.path.is_dir():
        return {subject.path: subject.calibration}
    from benchmarks.common import speech  # which imports transformers

    return {
        subject.path / f"{name}.onnx": x for name, x in speech.calibration(subject.path, subject.calibration).items()
    }


def add(
    subject: Subject, rows: Rows, level: str, tool: str, dense: Score, score: Score, file: Path, **more: float
) -> None:
    """Keep one row."""
    row = {
        "model": subject.name,
        "level": level,
        "tool": tool,
        "bytes": sum(path.stat().st_size for path in (file.glob("*.onnx") if file.is_dir() else [file])),
        "metric": subject.metric,
        "score": score.value,
        "dense": dense.value,
        "agreement": score.agreement,
        "output_loss": output_loss(dense, score, subject.classifier),
        **more,
    }
    rows.add(row)
    print(row, flush=True)


def page(rows: Sequence[Row]) -> str:
    """All rows as markdown."""
    parts = [
        "# Transformers",
        "`python -m benchmarks.transformers`. Calibrated on training text, scored on test text. *Rounding* is this "
        "tool with its solver off; *onnxruntime* is its `quantize_dynamic` and `MatMulNBitsQuantizer`; *NNCF* is its "
        f"`compress_weights`, which gets up to {THEIR_SAMPLES} samples where it looks at data. "
        "Output loss: KL divergence of the dense model's next token in nats, or the relative squared error of "
        "embeddings; layer loss: summed over the layers. ×: times the dense model's speed in that engine, in turn, of "
        "files of the same form whose weights are rounded; of the language model for reading a prompt and writing "
        f"{WRITTEN} tokens behind it, of Whisper for transcribing a sentence, of MiniLM for one sentence. "
        "Whisper is the English tiny one, its three files together, on sentences spoken by espeak-ng, with half a "
        "minute for solving the layers of a file.",
        "Where others are better: NNCF's files and dynamic ones of onnxruntime are smaller; `--embeddings int8` is for "
        "that. NNCF keeps embeddings and the last layer at 8 bits where the others have 4. At 8 bits, weights alone, "
        "its language model loses less, as onnxruntime does not recognise its products, and multiplies them in float: "
        "slowly, where inputs of the others are rounded to 8 bits ([decoders](../../docs/decoders.md)).",
    ]
    order = ["float", *RECIPES]
    tools = ["dense", OURS, ROUNDING, *(tool for _, tool in THEIR_OWN)]
    for name in NAMES:
        chosen = [row for row in rows if row["model"] == name]
        if not chosen:
            continue
        chosen.sort(key=lambda row: (order.index(row["level"]), tools.index(row["tool"])))
        metric = next(row["metric"] for row in chosen if "metric" in row)
        header = ("level", "by", "MB", metric, "change, %", "output loss", "layer loss", "× onnxruntime", "× OpenVINO")
        cells = [(row["level"], row["tool"], *_figures(row)) for row in chosen]
        parts += [f"## {name}", markdown(header, cells, left=2)]
        refusals = [f"- {row['level']} by {row['tool']}: {message}" for row in chosen for message in _refusals(row)]
        parts += ["\n".join(refusals)] if refusals else []
    return "\n\n".join([*parts, f"Measured on {machine()}."]) + "\n"


def _figures(row: Row) -> list[str]:
    """The cells of a row."""
    if "error" in row:
        return ["failed", *([""] * 6)]
    ratios = row.get("speed", {})
    return [
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['score']:.4g}",
        f"{100 * (row['score'] / row['dense'] - 1):+.2f}",
        f"{row['output_loss']:.2e}",
        f"{row['layer_loss']:.4g}" if "layer_loss" in row else "",
        *("refused" if isinstance(x, str) else f"{x:.2f}" if x else "" for x in (ratios.get(e) for e in ENGINES)),
    ]


def _refusals(row: Row) -> list[str]:
    """What failed."""
    messages = [f"{engine}: {x}" for engine, x in row.get("speed", {}).items() if isinstance(x, str)]
    return [row["error"]] if "error" in row else messages


def main() -> None:
    options = arguments(__doc__, NAMES).parse_args()
    measure("transformers", ("model", "level", "tool"), options, levels, page)


if __name__ == "__main__":
    main()
