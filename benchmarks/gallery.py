"""The gallery: report pages of four models with pictures of them, in docs/gallery, and the page docs/gallery.md.

    python -m benchmarks.gallery                 # half an hour on two cores
    python -m benchmarks.gallery --only digits
    python -m benchmarks.gallery --page          # only docs/gallery.md

Each page is what `onnx-obc … --html` writes for the command that stands on it, run in a scratch folder in which models
and data have short names. Held-out samples are left out: the data is not ours to show. Pictures are made by Chromium;
without it they stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.subjects import find_subjects
from onnx_obc.report.plain_report import checked_reports
from onnx_obc.report.report_page import write_report_page

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"": (1280, 1000), "-narrow": (390, 800)}


@dataclass(frozen=True)
class Entry:
    """One page. subject: of `benchmarks.common.subjects`, or digits. arguments: of the command, after the data."""

    name: str
    subject: str
    title: str
    arguments: tuple[str, ...]


ENTRIES = (
    Entry("digits", "digits", "Handwritten digits, 4-bit weights", ("--weights", "int4", "--activations", "none")),
    Entry(
        "resnet-56",
        "ResNet-56",
        "ResNet-56, two budgets of bit operations",
        ("--budget", "bops=8x", "--budget", "bops=14x"),
    ),
    Entry(
        "efficientnet-lite0-int4",
        "EfficientNet-Lite0",
        "EfficientNet-Lite0, 4-bit weights",
        ("--weights", "int4", "--activations", "none"),
    ),
    Entry(
        "efficientnet-lite0-sparse",
        "EfficientNet-Lite0",
        "EfficientNet-Lite0, 2:4 zeros and 8-bit integers",
        ("--sparsity", "2:4"),
    ),
    Entry("minilm", "MiniLM", "MiniLM, 8-bit integers", ("--embeddings", "int8")),
)


def lay_out(subject: str, shared: Path, models: Path, folder: Path) -> list[str]:
    """Put a model and its data into a folder under short names; returns the command's arguments for them."""
    if subject == "digits":
        for name in ("digits.onnx", "digits_calibration.npz"):
            shutil.copy(ROOT / "models" / name, folder / name.replace("_", "-"))
        test = np.load(ROOT / "models" / "digits_test.npz")
        np.savez(folder / "digits-test.npz", image=test["image"], labels=test["label"])
        data = ["--calib", "digits-calibration.npz", "--metric", "top-1", "--eval", "digits-test.npz"]
        return ["digits.onnx", "small.onnx", *data]
    (found,) = find_subjects(models, shared, folder, (subject,)) or (None,)
    if found is None:
        return []
    model = f"{subject.lower()}.onnx"
    names = {found.path: model, found.calibration: f"train{found.calibration.suffix}"}
    evaluation = found.held_out
    if subject == "MiniLM":
        evaluation = found.held_out.with_name("stsb_test.csv")
        names[Path(str(found.options.tokenizer))] = "tokenizer.json"
    names[evaluation] = f"test{evaluation.suffix}"
    for source, name in names.items():
        (folder / name).symlink_to(source.resolve())
    made = [model, "small.onnx", "--calib", names[found.calibration], "--eval", names[evaluation]]
    made += ["--metric", {"ResNet-56": "top-1", "EfficientNet-Lite0": "agreement", "MiniLM": "spearman"}[subject]]
    made += ["--preprocess", str(found.options.preprocess)] if found.options.preprocess else []
    made += ["--tokenizer", "tokenizer.json"] if subject == "MiniLM" else []
    return [*made, *(["--samples", str(found.options.samples)] if found.options.samples else [])]


def make(entry: Entry, shared: Path, models: Path) -> dict[str, Any] | None:
    """Run an entry's command and write its page; returns what docs/gallery.md says of it, None where data is missing.

    Raises CalledProcessError if the command fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arguments = lay_out(entry.subject, shared.resolve(), models.resolve(), folder)
        if not arguments:
            return None
        command = [*arguments, *entry.arguments, "--report", "report.json"]
        code = "from onnx_obc.cli.main import main; main()"
        subprocess.run(
            [sys.executable, "-c", code, *command], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        plain = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    reports = plain if isinstance(plain, list) else [plain]
    for report in reports:
        report["worst"] = []
    GALLERY.mkdir(exist_ok=True)
    write_report_page(checked_reports(reports, entry.name), GALLERY / f"{entry.name}.html")
    return {
        "name": entry.name,
        "command": " ".join(["onnx-obc", *command[:-2], "--html", "report.html"]),
        "said": [_said(report) for report in reports],
    }


def _said(report: dict[str, Any]) -> str:
    metric, speed = report["metric"], report["speed"]
    before, after = report["file_bytes_before"], report["file_bytes_after"]
    sizes = f"{before / 1e6:.3g} → {after / 1e6:.3g} MB"
    scores = f"{metric['name']} {metric['dense']:.4g} → {metric['compressed']:.4g}"
    budget = f"{report['search']['budget']}: " if report["search"] else ""
    return f"{budget}{sizes}, {scores}" + (f", {speed['ratio']:.2f} times the dense model's speed" if speed else "")


def picture(name: str) -> None:
    """Pictures of a page, as wide as a desk and as a hand holds."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"{name}: no picture, Chromium is not there")
        return
    for end, (width, height) in WIDTHS.items():
        size, path = f"--window-size={width},{height}", GALLERY / f"{name}{end}.png"
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={path}")
        page = (GALLERY / f"{name}.html").as_uri()
        subprocess.run([browser, *flags, page], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def write_page(made: Sequence[dict[str, Any]]) -> None:
    """docs/gallery.md."""
    lines = [
        "# Gallery",
        "",
        "Report pages as `--html` writes them ([report.md](report.md)): one file each, which loads nothing from",
        "elsewhere. Open a layer by its cell in the strip or its name in the table. Held-out samples are left out.",
        "Made by `make gallery`, which needs the models and data that [CONTRIBUTING.md](../CONTRIBUTING.md) names; the",
        "digits come with the package.",
        "",
    ]
    titles = {entry.name: entry.title for entry in ENTRIES}
    for one in made:
        name = one["name"]
        lines += [f"## {titles[name]}", "", *(f"- {said}" for said in one["said"]), ""]
        lines += [f"[The page](gallery/{name}.html)", "", f"![{titles[name]}](gallery/{name}.png)", ""]
        lines += ["```", one["command"], "```", ""]
    (ROOT / "docs" / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[entry.name for entry in ENTRIES], action="append")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--models", type=Path, default=ROOT / "work-models")
    options = parser.parse_args()
    kept = GALLERY / "gallery.json"
    known = {one["name"]: one for one in json.loads(kept.read_text())} if kept.exists() else {}
    for entry in ENTRIES:
        if not options.page and (options.only is None or entry.name in options.only):
            found = make(entry, options.shared, options.models)
            if found is not None:
                picture(entry.name)
                known[entry.name] = found
                print(f"{entry.name}: {'; '.join(found['said'])}", flush=True)
    made = [known[entry.name] for entry in ENTRIES if entry.name in known]
    kept.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_page(made)


if __name__ == "__main__":
    main()
