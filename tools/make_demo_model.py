"""Train the small model that the demo and the tests run on, and write it with its data to models/.

    pip install -r tools/requirements-models.txt -c constraints.txt
    python tools/make_demo_model.py

A convolutional classifier of scikit-learn's digits (8×8 grey, ten classes). Seeded; under a minute on a CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
CALIBRATION, TEST = 512, 450  # images; calibration images are training images
EPOCHS, BATCH, RATE = 80, 64, 1e-2
SPREAD = 1.1  # standard deviation of the logarithm of BatchNorm's initial scales


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Conv and BatchNorm, without an activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Plain(nn.Module):
    """Two 3×3 convolutions around a skip connection, as in a ResNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width, 3), nn.ReLU(), conv(width, width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


class Inverted(nn.Module):
    """Expand, filter every channel by itself, project back: an inverted residual, as in a MobileNet."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.body = nn.Sequential(
            conv(width, inner, 1), nn.ReLU(), conv(inner, inner, 3, groups=inner), nn.ReLU(), conv(inner, width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Digits(nn.Module):
    """`image` (N, 1, 8, 8) in [0, 1] → `logits` (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 16, 3), nn.ReLU(),
            Plain(16),
            conv(16, 32, 3, stride=2), nn.ReLU(),
            Inverted(32, 3),
            Inverted(32, 3),
            Plain(32),
            conv(32, 64, 3, stride=2, groups=2), nn.ReLU(),
            Inverted(64, 2),
            Inverted(64, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        # Channels of very different size, as large networks have them: the weights of the next layer make up for it,
        # so that one row holds large and small weights, and rounding it to a few bits hurts.
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, std=SPREAD)
                module.weight.data.exp_()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image))  # (N, 64, 2, 2) → (N, 10)


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels. Images (n, 1, 8, 8) float32 in [0, 1], labels int64."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]  # (1797, 1, 8, 8)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(labels))
    test, training = order[:TEST], order[TEST:]
    return images[training], labels[training], images[test], labels[test]


def train(images: torch.Tensor, labels: torch.Tensor) -> Digits:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in one order
    model = Digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images))
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(model(shift(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shift(images: torch.Tensor) -> torch.Tensor:
    """The images (n, 1, 8, 8), each moved by up to one pixel each way."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))  # (n, 1, 10, 10)
    moved = torch.stack([padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)])  # (9, n, 1, 8, 8)
    return moved[torch.randint(9, (len(images),)), torch.arange(len(images))]  # (n, 1, 8, 8)


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder to write to")
    out: Path = parser.parse_args().out
    training, training_labels, test, test_labels = split()
    model = train(torch.from_numpy(training), torch.from_numpy(training_labels))
    print(f"parameters: {sum(p.numel() for p in model.parameters())}")
    print(f"test accuracy: {accuracy(model, torch.from_numpy(test), torch.from_numpy(test_labels)):.4f}")
    torch.onnx.export(
        model,
        (torch.from_numpy(test[:2]),),
        out / "digits.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BatchNorm
        dynamo=False,
    )
    np.savez_compressed(out / "digits_calibration.npz", image=training[:CALIBRATION])
    np.savez_compressed(out / "digits_test.npz", image=test, label=test_labels)


if __name__ == "__main__":
    main()
