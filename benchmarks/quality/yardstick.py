"""The figures to hold: KL(dense ‖ compressed) of ResNet-20 at five levels, against the authors' own code.

    python -m benchmarks.quality.yardstick            # a quarter of an hour on two cores; writes results/yardstick.md
    python -m benchmarks.quality.yardstick --damp 0.001 --only 2:4 --only flops

Of 1,024 training images the last tenth is held out, the others calibrate; outputs are compared on 5,000 test images,
which calibrate nothing; the rule of the cut across rows was chosen with 2,000 of them among others. Weights only,
statistics corrected, everything else as by default. The authors' figures were measured once, with their code, its
batch-norm tuning and the same images; at 3x FLOPs with their solver on a profile that this tool had chosen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from benchmarks.common.evaluation import CIFAR_MEAN, CIFAR_STD, _nchw, _pixels
from benchmarks.common.subjects import Subject, find_subjects
from benchmarks.common.tables import machine, markdown
from onnx_obc import Recipe, compress, compress_to_budget, parse_budget

RESULTS = Path(__file__).parents[1] / "results"
AUTHORS = {"2:4": 0.0538, "4:8": 0.0368, "W2 asymmetric": 0.1026, "flops=3x": 0.0402, "flops=4x": 0.0861}


def compressed(subject: Subject, name: str, damp: float | None, folder: Path) -> list[tuple[str, Path]]:
    """Models by their names; all budgets are served by one database."""
    if name == "flops":
        names = [n for n in AUTHORS if n.startswith("flops")]
        paths = [folder / f"{n}.onnx" for n in names]
        budgets = [parse_budget(n) for n in names]
        recipe = Recipe(damp=damp)
        compress_to_budget(subject.path, subject.calibration, budgets, paths, recipe, data=subject.options)
        return list(zip(names, paths, strict=True))
    over = {"weights": "int2", "asymmetric": True} if name == "W2 asymmetric" else {"sparsity": name}
    path = folder / "model.onnx"
    recipe = Recipe.model_validate({"weights": "float", "activations": "none", "damp": damp} | over)
    compress(subject.path, subject.calibration, recipe, path, data=subject.options)
    return [(name, path)]


def test_images(archive: Path) -> npt.NDArray[np.float32]:
    """(5000, 3, 32, 32), as the model takes them."""
    import zipfile

    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.endswith(".jpg"))
        return _nchw([_pixels(images, name) for name in names], CIFAR_MEAN, CIFAR_STD)


def log_probabilities(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(images, classes)"""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = np.concatenate([session.run(None, {name: part})[0] for part in np.split(images, 40)]).astype(np.float64)
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _named(damp: float | None) -> str:
    return "chosen" if damp is None else f"{damp:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--damp", type=float, action="append", help="by default the tool's own choice, and 0.01")
    parser.add_argument("--only", action="append", choices=("2:4", "4:8", "W2 asymmetric", "flops"))
    parser.add_argument("--print", action="store_true", help="write no page")
    options = parser.parse_args()
    damps: list[float | None] = options.damp or [None, 0.01]
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (subject,) = find_subjects(Path("unused"), options.shared, Path(scratch), ("ResNet-20",))
        images = test_images(subject.held_out)
        dense = log_probabilities(subject.path, images)
        for name in options.only or ("2:4", "4:8", "W2 asymmetric", "flops"):
            for damp in damps:
                began = time.perf_counter()
                for row, path in compressed(subject, name, damp, Path(scratch)):
                    lossy = log_probabilities(path, images)
                    divergence = float((np.exp(dense) * (dense - lossy)).sum(axis=1).mean())
                    found.setdefault(row, []).append(f"{divergence:.4f} ({divergence / AUTHORS[row] - 1:+.1%})")
                    took = time.perf_counter() - began
                    print(f"{row}, damping {_named(damp)}: {divergence:.4f}, {took:.0f} s", flush=True)
    if options.print:
        return
    header = ("level", "authors", *(f"damping {_named(damp)}" for damp in damps))
    cells = [(row, f"{AUTHORS[row]:.4f}", *values) for row, values in found.items()]
    page = f"# KL divergence from the dense ResNet-20\n\n{__doc__}\nOn {machine()}.\n\n{markdown(header, cells)}\n"
    (RESULTS / "yardstick.md").write_text(page)


if __name__ == "__main__":
    main()
