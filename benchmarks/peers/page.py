"""The page of the comparison: a table for every model, and where a peer is better than onnx-obc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmarks.common.subjects import NAMES
from benchmarks.common.tables import machine, markdown
from benchmarks.peers.catalogue import LEVELS, OURSELVES, PEERS, TEXT, not_run
from benchmarks.peers.evaluate import ENGINES, ROUNDS

Row = Mapping[str, Any]
NOISE = {"ResNet-20": 0.005, "ResNet-56": 0.005, "EfficientNet-Lite0": 0.015, "MiniLM": 0.003}  # of the score


@dataclass(frozen=True)
class Figure:
    """A column. field: of the row, or of its speed. form: how it is written. margin: by what factor a peer's has to be
    better to count; more: whether more is better."""

    title: str
    field: str
    margin: float
    more: bool

    def of(self, row: Row) -> float | None:
        """The value, None where the row has none."""
        if self.field in ENGINES:
            row, field = row.get("speed", {}).get(self.field, {}), "ratio"
        else:
            field = self.field
        value: float | None = row.get(field)
        return value

    def better(self, row: Row, ours: Row) -> bool:
        """Whether a peer's figure is better than ours."""
        theirs, own = self.of(row), self.of(ours)
        if theirs is None or own is None or "error" in row:
            return False
        if self.field == "score":
            return theirs > own + NOISE[row["model"]]
        if self.field in ENGINES:
            quartiles = [one["speed"][self.field]["quartiles"] for one in (row, ours)]
            return bool(quartiles[0][0] > self.margin * quartiles[1][1])
        return theirs > own * self.margin if self.more else theirs < own / self.margin

    def text(self, row: Row) -> str:
        """The value as the table writes it."""
        value = self.of(row)
        if value is None:
            return ""
        if self.field in ("score", "agreement"):
            return f"{100 * value:.2f}" if row["metric"] == "top-1" else f"{value:.4f}"
        if self.field.endswith("bytes"):
            return f"{value / 1e6:.2f}" if self.field == "bytes" else f"{value / 1e6:.0f}"
        return {"loss": f"{value:.5f}", "seconds": f"{value:.0f}", "cpu_seconds": f"{value:.0f}"}.get(
            self.field, f"{value:.2f}"
        )


FIGURES = (
    Figure("score", "score", 1, True),
    Figure("agreement", "agreement", 1.003, True),
    Figure("output loss", "loss", 1.03, False),
    Figure("MB", "bytes", 1.02, False),
    Figure("s", "seconds", 1.1, False),
    Figure("CPU s", "cpu_seconds", 1.1, False),
    Figure("peak MB", "peak_bytes", 1.1, False),
    Figure("× onnxruntime", "onnxruntime", 1.05, True),
    Figure("× OpenVINO", "openvino", 1.05, True),
)
WORDS = {
    "score": "score",
    "loss": "output loss",
    "bytes": "smaller file",
    "cpu_seconds": "less CPU time",
    "peak_bytes": "less memory",
    "onnxruntime": "faster in onnxruntime",
    "openvino": "faster in OpenVINO",
}
NAMED = [figure for figure in FIGURES if figure.field in WORDS]  # by the summary


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By model, level, and tool, ours first."""
    places = {peer: place for place, peer in enumerate(PEERS)}
    return sorted(rows, key=lambda row: (NAMES.index(row["model"]), LEVELS.index(row["level"]), places[row["peer"]]))


def reference(rows: Sequence[Row], model: str, level: str) -> Row | None:
    """Our row that the others at a level are compared with: that of the first method that the catalogue lists.

    Blocks of weights in convolutions, which we do not have, are compared with one scale for each output.
    """
    if model not in TEXT:
        level = level.removesuffix(" in blocks")
    method = next(offer.method for offer in PEERS[OURSELVES].offers if offer.level == level)
    keys = (model, level, OURSELVES, method)
    return next((row for row in rows if (row["model"], row["level"], row["peer"], row["method"]) == keys), None)


def beside_others(rows: Sequence[Row], levels: Sequence[str]) -> str:
    """Ours beside the other tool's method of lowest output loss, at every level that both have; †: some method of the
    others was not run there."""
    cells = []
    for model, level in product(NAMES, levels):
        there = [row for row in rows if (row["model"], row["level"]) == (model, level) and "loss" in row]
        ours, others = reference(there, model, level), [row for row in there if row["peer"] != OURSELVES]
        if ours is None or not others:
            continue
        best = min(others, key=lambda row: float(row["loss"]))
        pair = [f"{FIGURES[0].text(row)} · {row['loss']:.4f}" for row in (ours, best)]
        lower = int(best["loss"] < ours["loss"])
        pair[lower] = f"**{pair[lower]}**"
        unrun = {offer.level for peer, offer in not_run(rows, model) if peer != OURSELVES}
        ratios = (row["speed"]["onnxruntime"].get("ratio") for row in (ours, best))
        speeds = ["" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        seconds = [f"{row['cpu_seconds']:.0f}" for row in (ours, best)]
        mark = "†" if level in unrun else ""
        cells.append((model, level + mark, *pair, f"{best['peer']}, {best['method']}", *speeds, *seconds))
    header = ("model", "level", "onnx-obc", "best of the others", "which", "×, ours", "theirs", "CPU s, ours", "theirs")
    return markdown(header, cells, left=2)


def table(rows: Sequence[Row]) -> str:
    """The rows, with bold figures where a peer is better."""
    header = ("level", "tool", "method", *(figure.title for figure in FIGURES), "what failed")
    cells = []
    for row in ordered(rows):
        ours = reference(rows, row["model"], row["level"])
        figures = []
        for figure in FIGURES:
            better = row["peer"] != OURSELVES and ours is not None and figure.better(row, ours)
            text = figure.text(row)
            figures.append(f"**{text}**" if better else text)
        failed = [row.get("error", "")]
        failed += [f"{engine}: {found['error']}" for engine, found in row.get("speed", {}).items() if "error" in found]
        told = "; ".join(text.replace("|", "/") for text in failed if text)
        cells.append((row["level"], row["peer"], row["method"], *figures, told))
    return markdown(header, cells, left=3)


def summary(rows: Sequence[Row]) -> str:
    """Where peers are better than our row of the same level: for each model, figure and level the best of them."""
    lines = []
    for model, figure in product(NAMES, NAMED):
        told = []
        for level in LEVELS:
            ours = reference(rows, model, level)
            others = [
                row for row in rows if (row["model"], row["level"]) == (model, level) and row["peer"] != OURSELVES
            ]
            better = [row for row in others if ours is not None and figure.better(row, ours)]
            if ours is not None and better:
                best = (max if figure.more else min)(better, key=lambda row: figure.of(row) or 0.0)
                rest = f", and {len(better) - 1} more" if len(better) > 1 else ""
                method = f"{best['peer']} {best['method']}"
                told.append(f"{level} {method} ({figure.text(best)}, ours {figure.text(ours)}{rest})")
        if told:
            lines.append(f"- {model}, {WORDS[figure.field]}: {'; '.join(told)}")
    return "\n".join(lines) or "- nowhere"


def unmeasured(rows: Sequence[Row], model: str) -> str:
    """The methods that the catalogue lists for a model and that have no row."""
    missing = [f"{peer} {offer.method} ({offer.level})" for peer, offer in not_run(rows, model)]
    return f"Not run: {'; '.join(missing)}." if missing else "Every method was run."


def page(rows: Sequence[Row]) -> str:
    """The whole markdown page."""
    versions = {row["peer"]: row for row in rows}
    tools = "\n".join(
        f"- {peer} {versions[peer]['version']}"
        + (f", {versions[peer]['installed_bytes'] / 1e6:.0f} MB installed" if peer != OURSELVES else "")
        + (f": {about.lacks}" if about.lacks else "")
        for peer, about in PEERS.items()
        if peer in versions
    )
    parts = []
    for model in NAMES:
        here = [row for row in rows if row["model"] == model]
        if not here:
            parts.append(f"## {model}\n\nNot run.\n")
            continue
        one = here[0]
        dense = f"{100 * one['dense']:.2f} %" if one["metric"] == "top-1" else f"{one['dense']:.4f}"
        about = (
            f"Dense: {one['metric']} {dense} on {one['evaluation_samples']:,} samples, "
            f"{one['dense_bytes'] / 1e6:.2f} MB; outputs compared on {one['compared_samples']:,} samples."
        )
        parts.append(f"## {model}\n\n{about}\n\n{table(here)}\n\n{unmeasured(here, model)}\n")
    return f"""# Beside other people's quantizers

Where another tool is better than onnx-obc with its defaults at the same level, beyond the noise:

{summary(rows)}

`python -m benchmarks.peers.run`, on {machine()}, with other work beside it: seconds are
therefore pessimistic and noisy, CPU seconds less so; speed is measured in turn with the dense file. Every tool got the
same {rows[0]["calibration_samples"]} samples, without labels, as arrays; ours keeps a tenth of them to check itself.
Each ran in an environment of its own, with the settings that its documentation recommends, as the scripts in
`benchmarks/peers/drivers` say.

{tools}

*Score*: top-1 in %, or Spearman's correlation, of the file in onnxruntime. *Agreement*: how often the class is the
dense model's, or the correlation with its similarities. *Output loss*: KL(dense ‖ compressed) in nats, for MiniLM the
squared error of embeddings relative to their energy, on data that calibrates nothing. *s*, *CPU s*: of the whole
process, start and imports included, all its threads. *Peak MB*: resident memory of its processes, looked at ten times
a second. *×*: how many times faster than the dense file in that engine, batch 16, the median of {ROUNDS} rounds or
more. Bold: better than the first row of onnx-obc at that level, by more than half a point (EfficientNet-Lite0 1.5,
MiniLM 0.003) of score, 3 % of output loss, 2 % of size, 5 % of speed with quartiles apart, 10 % of time or memory.
A level that a tool does not offer has no row.

*W8A8*: 8-bit weights and inputs; ours, and most, round what residual sums add too, so that onnxruntime computes them in
integers, and onnxsim's static files do not: less is lost, and they are slower than the dense ones. *W4A8*: 4-bit
weights, 8-bit inputs. *W4*, *W3*, *W2*: weights alone, a scale for each output; *in blocks*: for each 32 or so weights.
*2:4*: two of four weights zero, the others float.

{chr(10).join(parts)}"""
