"""The figures to hold: KL(dense ‖ compressed) of ResNet-20 at five levels, against the authors' own code.

    python -m benchmarks.quality.yardstick            # half an hour on two cores; writes results/yardstick.md
    python -m benchmarks.quality.yardstick --setting "damping 0.01" --only 2:4 --only flops --seeds 1

Of 1,024 training images the last tenth is held out, the others calibrate; outputs are compared on 5,000 test images,
which calibrate nothing; the rule of the cut across rows was chosen with 2,000 of them among others. Weights only,
statistics corrected, layers solved each for itself or in order, which is the default at 2 bits, everything else as by
default; mean over the seeds that draw the positions of the Hessians, ± its standard error. The authors' figures were
measured once, with their code, its batch-norm tuning and the same images; at 3x FLOPs with their solver on a profile
that this tool had chosen.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.evaluation import output_loss
from benchmarks.common.subjects import Subject, find_subjects
from benchmarks.common.tables import machine, markdown
from onnx_obc import Recipe, compress, compress_to_budget, parse_budget

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS: dict[str, dict[str, Any]] = {
    "each for itself": {"sequential": False, "reconstruction": False},
    "damping 0.01": {"sequential": False, "reconstruction": False, "damp": 0.01},
    "in order": {"sequential": True, "reconstruction": False},
}
AUTHORS = {"2:4": 0.0538, "4:8": 0.0368, "W2 asymmetric": 0.1026, "flops=3x": 0.0402, "flops=4x": 0.0861}


def compressed(subject: Subject, name: str, setting: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Models by their names; all budgets are served by one database."""
    if name == "flops":
        names = [n for n in AUTHORS if n.startswith("flops")]
        paths = [folder / f"{n}.onnx" for n in names]
        budgets = [parse_budget(n) for n in names]
        recipe = Recipe(**setting)
        compress_to_budget(subject.path, subject.calibration, budgets, paths, recipe, data=subject.options)
        return list(zip(names, paths, strict=True))
    over = {"weights": "int2", "asymmetric": True} if name == "W2 asymmetric" else {"sparsity": name}
    path = folder / "model.onnx"
    recipe = Recipe.model_validate({"weights": "float", "activations": "none"} | setting | over)
    compress(subject.path, subject.calibration, recipe, path, data=subject.options)
    return [(name, path)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--setting", action="append", choices=SETTINGS, help="only this one")
    parser.add_argument("--only", action="append", choices=("2:4", "4:8", "W2 asymmetric", "flops"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--print", action="store_true", help="write no page")
    options = parser.parse_args()
    settings = options.setting or list(SETTINGS)
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        (subject,) = find_subjects(Path("unused"), options.shared, Path(scratch), ("ResNet-20",))
        dense = subject.score(subject.path, None)
        for name, setting, seed in product(
            options.only or ("2:4", "4:8", "W2 asymmetric", "flops"), settings, range(options.seeds)
        ):
            for row, path in compressed(subject, name, SETTINGS[setting] | {"seed": seed}, Path(scratch)):
                divergence = output_loss(dense, subject.score(path, None), subject.classifier)
                found.setdefault((row, setting), []).append(divergence)
                print(f"{row}, {setting}, seed {seed}: {divergence:.4f}", flush=True)
    if options.print:
        return
    rows = [row for row in AUTHORS if any(key[0] == row for key in found)]
    cells = [(row, f"{AUTHORS[row]:.4f}", *(_cell(found[row, x], AUTHORS[row]) for x in settings)) for row in rows]
    page = f"# KL divergence from the dense ResNet-20\n\n{__doc__}\nOn {machine()}.\n\n"
    (RESULTS / "yardstick.md").write_text(page + markdown(("level", "authors", *settings), cells) + "\n")


def _cell(values: list[float], authors: float) -> str:
    """The mean, its standard error where there are several, and how far it is from the authors' figure."""
    mean = float(np.mean(values))
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{mean:.4f}{error} ({mean / authors - 1:+.1%})"


if __name__ == "__main__":
    main()
