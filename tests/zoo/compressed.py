"""What holds of any compressed network of the zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnx_obc import Recipe, compress

from .case import Case


def check_compressed(case: Case, dense: Path, recipe: Recipe, decibels: float | None, tmp_path: Path) -> None:
    """Compress a case: it runs, has the interface that it had, and its outputs keep so many decibels."""
    output = tmp_path / "small.onnx"
    report = compress(dense, case.feeds(np.random.default_rng(1)), recipe, output=output).report
    assert report.layers
    assert all(check.passed for check in report.checks)
    assert all(left.name and left.reason for left in report.left_out)

    before, after = session(dense), session(output)
    assert interface(before) == interface(after)
    signal, noise = np.zeros(len(before.get_outputs())), np.zeros(len(before.get_outputs()))
    for feed in case.feeds(np.random.default_rng(2)):
        for i, (expected, got) in enumerate(zip(before.run(None, feed), after.run(None, feed), strict=True)):
            assert expected.shape == got.shape
            assert expected.dtype == got.dtype
            assert np.isfinite(expected).all()
            assert np.isfinite(got).all()
            if expected.dtype in (np.float16, np.float32):
                expected, got = expected.astype(np.float64), got.astype(np.float64)
                signal[i] += np.square(expected).sum()
                noise[i] += np.square(expected - got).sum()
    if decibels is not None:
        assert (noise <= signal * 10 ** (-decibels / 10)).all(), 10 * np.log10(signal / noise)


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interface(session: ort.InferenceSession) -> list[tuple[str, str, list[int | str | None]]]:
    return [(v.name, v.type, v.shape) for v in (*session.get_inputs(), *session.get_outputs())]
