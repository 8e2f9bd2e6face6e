"""A classifier of images from PyTorch: export it, compress it, compare it. Needs torch.

python examples/image_classifier.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnx_obc import Recipe, compress


def network() -> nn.Module:
    """Yours, trained. This one is small and random."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def main(folder: Path) -> None:
    """Export, compress, and say what came of it."""
    dense, small = folder / "classifier.onnx", folder / "classifier-small.onnx"
    # In float32, in evaluation mode, with a free batch; opset 17 or newer.
    free = {"image": {0: "N"}}
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(
        network(), torch.zeros(1, 3, 16, 16), dense, opset_version=17, dynamic_axes=free, dynamo=False, **names
    )
    # Some hundred images as the network will see them, preprocessed as in training: here noise.
    images = np.random.default_rng(0).standard_normal((128, 3, 16, 16)).astype(np.float32)
    result = compress(dense, {"image": images}, Recipe(weights="int4", activations="none"), small)
    report = result.report
    print(f"{report.file_bytes_before} → {report.file_bytes_after} bytes, output loss {report.output_loss:.2g}")
    for layer in report.layers:
        print(f"{layer.name}: {layer.level}, loss {layer.loss_relative:.2g}, by rounding {layer.baseline_relative:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
