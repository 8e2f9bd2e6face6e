"""A text detector with a feature pyramid, trained here on text drawn into photographs.

    python -m benchmarks.quality.text_detector

Writes work-models/text-detector.onnx: a MobileNetV3-like backbone, a pyramid of four levels that are concatenated, and
two heads at a quarter of the resolution: `score`, the probability that a pixel is text, and `sides`, its distances in
pixels from the four sides of its line (EAST: Zhou et al. 2017; the pyramid as in DB: Liao et al. 2020).
"""

from __future__ import annotations

import io
import time
import zipfile
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

SIZE, STRIDE = 160, 4  # pixels of an image's side, and pixels of it for each of an output's
NAME = "text-detector.onnx"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# of each block: kernel, expanded channels, channels, whether squeezed and excited, hard swish or Relu, stride
BLOCKS = (
    (3, 16, 16, False, False, 1), (3, 32, 24, False, False, 2), (3, 48, 24, False, False, 1),
    (5, 48, 32, True, False, 2), (5, 64, 32, True, False, 1), (5, 64, 32, True, False, 1),
    (3, 96, 48, False, True, 2), (3, 96, 48, False, True, 1), (3, 96, 48, False, True, 1),
    (3, 144, 64, True, True, 1), (5, 192, 64, True, True, 2), (5, 192, 64, True, True, 1), (5, 192, 64, True, True, 1),
)  # fmt: skip
LEVELS = (2, 5, 9, 12)  # the blocks whose outputs, at strides 4 to 32, go into the pyramid
WIDTH = 64  # channels of the pyramid


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A Conv with BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """An inverted residual block of MobileNetV3."""

    def __init__(self, inputs: int, kernel: int, wide: int, outputs: int, squeeze: bool, swish: bool, stride: int):
        super().__init__()
        parts: list[nn.Module] = [convolution(inputs, wide, 1), nn.Hardswish() if swish else nn.ReLU()]
        parts += [convolution(wide, wide, kernel, stride, wide)]
        parts += [Squeeze(wide)] if squeeze else []
        parts += [nn.Hardswish() if swish else nn.ReLU(), convolution(wide, outputs, 1)]
        self.body, self.skip = nn.Sequential(*parts), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


class Detector(nn.Module):
    """(n, 3, SIZE, SIZE) → score (n, 1, SIZE/4, SIZE/4), sides (n, 4, SIZE/4, SIZE/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 16, 3, 2), nn.Hardswish())
        inputs = [16, *(outputs for _, _, outputs, _, _, _ in BLOCKS)]
        self.blocks = nn.ModuleList(Block(n, *block) for n, block in zip(inputs, BLOCKS, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(BLOCKS[level][2], WIDTH, 1) for level in LEVELS)
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH // 4, 3, padding=1) for _ in LEVELS)
        self.neck = nn.Sequential(convolution(WIDTH, WIDTH, 3), nn.ReLU())
        self.score = nn.Sequential(convolution(WIDTH, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 1))
        self.sides = nn.Sequential(convolution(WIDTH, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, found = self.stem(x), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            found += [x] if index in LEVELS else []
        levels = [lateral(y) for lateral, y in zip(self.lateral, found, strict=True)]
        for index in (2, 1, 0):
            levels[index] = levels[index] + F.interpolate(levels[index + 1], scale_factor=2.0)
        parts = [
            F.interpolate(smooth(y), scale_factor=float(2**index)) if index else smooth(y)
            for index, (smooth, y) in enumerate(zip(self.smooth, levels, strict=True))
        ]
        x = self.neck(torch.cat(parts, 1))
        return torch.sigmoid(self.score(x)), SIZE * torch.sigmoid(self.sides(x))


def drawn(images: list[Image.Image], seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Photographs with lines of text: pixels (n, 3, SIZE, SIZE), and (n, 5, SIZE/4, SIZE/4): text or not, sides."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((len(images), 3, SIZE, SIZE), np.float32)
    wanted = np.zeros((len(images), 5, SIZE // STRIDE, SIZE // STRIDE), np.float32)
    middle = np.arange(SIZE // STRIDE) * STRIDE + STRIDE / 2
    for index, image in enumerate(images):
        left, top = rng.integers(0, 256 - SIZE + 1, 2)
        part = image.crop((left, top, left + SIZE, top + SIZE))
        pen = ImageDraw.Draw(part)
        for _ in range(int(rng.integers(1, 5))):
            text = "".join(rng.choice(list(LETTERS), int(rng.integers(3, 11))))
            font = ImageFont.load_default(float(rng.integers(10, 29)))
            at = (float(rng.integers(0, SIZE - 40)), float(rng.integers(0, SIZE - 20)))
            x0, y0, x1, y1 = pen.textbbox(at, text, font=font)
            pen.text(at, text, tuple(int(c) for c in rng.integers(0, 256, 3)), font=font)
            inside = np.ix_((middle > y0) & (middle < y1), (middle > x0) & (middle < x1))
            wanted[index, 0][inside] = 1
            yy, xx = np.meshgrid(middle, middle, indexing="ij")
            for side, distance in enumerate((xx - x0, yy - y0, x1 - xx, y1 - yy), 1):
                wanted[index, side][inside] = distance[inside]
        pixels[index] = ((np.asarray(part, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
    return pixels, wanted


def photographs(shared: Path) -> list[Image.Image]:
    """The sample images, 256 × 256."""
    with zipfile.ZipFile(shared / "data/imagenet1k-sample/images256.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names]


def train(images: list[Image.Image], minutes: float) -> Detector:
    """Train for so long."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, began, step = Detector(), time.monotonic(), 0
    best = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    while (gone := (time.monotonic() - began) / 60 / minutes) < 1:
        for group in best.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 50) * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * gone)))
        x, y = map(torch.from_numpy, drawn([images[i] for i in rng.integers(0, len(images), 16)], 1000 + step))
        score, sides = model(x)
        text = y[:, :1]
        wrong = F.binary_cross_entropy(score, text)
        log = (torch.log(sides + 1) - torch.log(y[:, 1:].clamp(min=0) + 1)).abs() * text
        loss = wrong + log.sum() / (4 * text.sum() + 1)
        best.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        best.step()
        step += 1
        if step % 50 == 0:
            print(step, f"{wrong.item():.3f} {loss.item():.3f}", flush=True)
    return model.eval()


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("work-models"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="the shared material")
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    images = photographs(options.shared)
    model = train(images[::2], options.minutes)
    x, y = drawn(images[1::10], 7)
    with torch.no_grad():
        score = model(torch.from_numpy(x))[0].numpy()
    hit = ((score > 0.5) & (y[:, :1] > 0.5)).sum()
    print(f"precision {hit / max((score > 0.5).sum(), 1):.3f}, recall {hit / (y[:, :1] > 0.5).sum():.3f}")
    torch.onnx.export(
        model,
        (torch.from_numpy(x[:1]),),
        options.models / NAME,
        input_names=["image"],
        output_names=["score", "sides"],
        dynamic_axes={name: {0: "n"} for name in ("image", "score", "sides")},
        opset_version=17,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
