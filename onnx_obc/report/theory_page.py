"""The paper's theory alone, of distributions, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from ..study.paper import Both, Crossing, Theory, theory
from ..study.size import Mask
from ..study.theory import BITS
from . import plot
from .render import write_page
from .study_figures import shade
from .study_words import db

FAMILY_NAMES = {"truncated-t": "truncated t", "generalised-gaussian": "generalised Gaussian"}


def write_theory_page(path: Path) -> None:
    """Write one HTML file, whole or not at all. Raises OutputError."""
    found = theory()
    values = {
        "theory": found,
        "bits": list(BITS),
        "crossings": by_bits(found.crossings),
        "families": FAMILY_NAMES,
        "masks": get_args(Mask),
        "both": by_mask(found.both),
        "against_bits": _against_bits(found),
        "against_kurtosis": _against_kurtosis(found),
    }
    write_page("theory.html.j2", {**values, "db": db, "gains": gains, "together": together}, path)


def by_bits(crossings: Sequence[Crossing]) -> list[tuple[int, dict[str, Crossing]]]:
    """The crossings of a budget together, by family."""
    found: dict[int, dict[str, Crossing]] = {}
    for crossing in crossings:
        found.setdefault(crossing.bits, {})[crossing.family] = crossing
    return sorted(found.items())


def by_mask(found: Sequence[Both]) -> list[list[Both]]:
    """What both together reach of each distribution at each budget, by mask."""
    rows: dict[tuple[str, int], list[Both]] = {}
    for both in found:
        rows.setdefault((both.name, both.bits), []).append(both)
    return list(rows.values())


def gains(both: Both) -> bool:
    """Whether pruning and quantization together lose less than quantization alone."""
    return both.together is not None and both.together.snr > both.alone + 1e-9


def together(both: Both) -> str:
    """The best of both together in a few words: its SNR, the bits of what is kept, and how much of it."""
    if both.together is None:
        return "nothing fits"
    if both.together.density == 1 and not gains(both):
        return "alone is best"
    return f"{db(both.together.snr, 2)} ({both.together.bits} × {both.together.density:.2f})"


def _against_bits(found: Theory) -> str:
    rows = found.gaussian
    x = plot.Scale(BITS[0] - 0.3, BITS[-1] + 0.3, 60, 508)
    y = plot.fitted([0.0, *(row.int_snr for row in rows), *(row.mid_snr for row in rows)], 304, 14)
    parts = [plot.axes(x, y, ("bits per weight", "SNR of N(0, 1), dB"), at=list(BITS))]
    for css, values in (
        ("run q thin", [row.mid_snr for row in rows]),
        ("run q thin", [row.sym_snr for row in rows]),
        ("run q", [row.int_snr for row in rows]),
        ("run p", [row.pruned for row in rows]),
    ):
        points = [(x(row.bits), y(value)) for row, value in zip(rows, values, strict=True)]
        parts.append(plot.line(points, css))
        if css == "run q" or css == "run p":
            kind = "quantized" if css == "run q" else "pruned"
            parts += [
                plot.circle(*at, 3, f"dot {css[4:]}", f"{row.bits} bits, {kind}: {value:.2f} dB")
                for at, row, value in zip(points, rows, values, strict=True)
            ]
    return plot.figure(520, 350, "SNR against bits per weight of the Gaussian, quantized and pruned", parts)


def _against_kurtosis(found: Theory) -> str:
    curve = found.curve
    x = plot.Scale(curve[0].kurtosis, curve[-1].kurtosis, 60, 486, log=True)
    snrs = [snr for each in curve for row in each.rows for snr in (row.quantized, row.pruned)]
    y = plot.fitted([0.0, *snrs], 304, 14)
    parts = [plot.axes(x, y, ("kurtosis (logarithmic; Gaussian 3)", "SNR of a truncated t, dB"))]
    for i, bits in enumerate(BITS):
        css = shade(bits, BITS)
        quantized = [(x(each.kurtosis), y(each.rows[i].quantized)) for each in curve]
        pruned = [(x(each.kurtosis), y(each.rows[i].pruned)) for each in curve]
        parts.append(plot.line(pruned, f"run dash slim {css}", f"{bits} bits, pruned"))
        parts.append(plot.line(quantized, f"run slim {css}", f"{bits} bits, quantized"))
    for crossing in found.crossings:
        if crossing.family == "truncated-t" and crossing.at is not None:
            at, css = crossing.at, shade(crossing.bits, BITS)
            title = f"{crossing.bits} bits: pruning overtakes at a kurtosis of {at.kurtosis:.4g}, {at.snr:.2f} dB"
            parts.append(plot.circle(x(at.kurtosis), y(at.snr), 4.2, f"ring {css}", title))
    for i, bits in enumerate(BITS):
        place = x.start + 6, y(curve[0].rows[i].quantized) - 5
        parts.append(plot.text(*place, str(bits), f"tick on {shade(bits, BITS)}"))
    return plot.figure(520, 350, "SNR against kurtosis of truncated Student-t distributions", parts)
