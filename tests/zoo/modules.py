"""Small torch modules, each with something that a compressor may stumble over."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .case import Case, Input, torch_case

IMAGE = {"image": Input(("batch", 3, 16, 16))}
IMAGE_FIXED = {"image": Input((2, 3, 16, 16))}
SIGNAL = {"signal": Input(("batch", 4, 64))}
TEXT = {"tokens": Input(("batch", "tokens"), 50)}
STATES = {"states": Input(("batch", "tokens", 24))}
VECTOR = {"vector": Input(("batch", 24))}


class UNet(nn.Module):
    """Two scales down and up, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.leave = nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.leave(torch.cat([x, self.up(self.down(x))], 1))


class Tied(nn.Module):
    """One matrix is the embedding and the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.mix = nn.Linear(24, 24)
        self.project = nn.Linear(24, 50, bias=False)
        self.project.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.project(torch.tanh(self.mix(self.embed(tokens))))


class Siamese(nn.Module):
    """The same layers see two inputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(image, 2)
        return self.tower(image).mean((2, 3)) - self.tower(small).mean((2, 3))


class Recurrent(nn.Module):
    """An LSTM or GRU between two linear layers."""

    def __init__(self, kind: type[nn.RNNBase], bidirectional: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(24, 16)
        self.cell = kind(16, 16, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.leave = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.leave(self.cell(self.enter(states))[0])


class Left(nn.Module):
    """A constant on the left of the product: it mixes positions, not features."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(16, 12))
        self.features = nn.Linear(24, 24)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.features(F.relu(torch.matmul(self.positions, states)))


class Experts(nn.Module):
    """Every expert has its own matrix: one batched constant product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(4, 24, 32))
        self.second = nn.Parameter(torch.empty(4, 32, 8))

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return torch.matmul(F.relu(torch.matmul(vector.unsqueeze(0), self.first)), self.second).mean(0)


class Attention(nn.Module):
    """Scaled dot product attention; one operator from opset 23 on."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(states).unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)  # (batch, 2, tokens, 12) each
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class HyperNetwork(nn.Module):
    """The second layer's weights are computed from the input: not constant, so not a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(24, 24 * 8)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return torch.bmm(vector.unsqueeze(1), self.make(vector).view(-1, 24, 8)).squeeze(1)


class Standardized(nn.Conv2d):
    """Weight standardisation: the weight that the node sees is computed from the stored one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, 0.2 * w, self.bias, self.stride, self.padding)


class Einsum(nn.Module):
    """A linear layer written as an einsum over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 3, 8))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btd,dhk->bthk", states, self.weight)


class Rollout(nn.Module):
    """A scripted loop around a linear layer: its weight lies outside the loop's body."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.step = nn.Linear(24, 16), nn.Linear(16, 16)
        self.unroll = torch.jit.script(unroll)

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        return self.unroll(self.enter(vector), self.step.weight, self.step.bias)


def unroll(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    for _ in range(x.shape[0]):
        x = torch.tanh(F.linear(x, weight, bias))
    return x


class Sparse(nn.Module):
    """Most channels are zero: dead inputs, a Hessian with empty rows, a layer that is already all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.zero, self.last = nn.Linear(24, 32), nn.Linear(32, 32), nn.Linear(32, 6)
        self.register_buffer("alive", (torch.arange(32) % 4 == 0).float())
        self.register_buffer("nothing", torch.zeros(32, 32))

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(vector)) * self.alive
        return self.last(x + F.linear(x, self.nothing, self.zero.bias))


def unet() -> nn.Module:
    return UNet()


def grouped_dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(12, 24, (3, 1), padding=(1, 0), groups=3), nn.GELU(),
        nn.Conv2d(24, 24, (1, 5), stride=(2, 1), dilation=(1, 2), groups=24), nn.Hardswish(),
        nn.Conv2d(24, 10, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def transposed_groups() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.LeakyReLU(),
        nn.ConvTranspose2d(12, 18, 3, stride=2, padding=1, output_padding=1, groups=3), nn.ReLU(),
        nn.ConvTranspose2d(18, 6, (1, 3), dilation=(1, 2), groups=2, bias=False), nn.BatchNorm2d(6),
    )  # fmt: skip


def transposed_1d() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 16, 5, stride=2, padding=2), nn.PReLU(16),
                         nn.ConvTranspose1d(16, 2, 4, stride=2, padding=1), nn.Tanh())  # fmt: skip


def wavenet() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv1d(4, 16, 1)]
    for dilation in (1, 2, 4):
        layers += [nn.ConstantPad1d((2 * dilation, 0), 0.0), nn.Conv1d(16, 32, 3, dilation=dilation), nn.GLU(1)]
    return nn.Sequential(*layers, nn.Conv1d(16, 4, 1))


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, (1, 3, 3), groups=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def mixer() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.Flatten(2), nn.Linear(16, 16), nn.GELU(),
                         nn.LayerNorm(16), nn.Linear(16, 16, bias=False))  # fmt: skip


def standardized() -> nn.Module:
    return nn.Sequential(Standardized(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
                         Standardized(16, 16, 3, stride=2), nn.InstanceNorm2d(16, affine=True), nn.SiLU())  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 1))


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 12, 3, padding="same"),
                         nn.PixelShuffle(2), nn.Upsample(scale_factor=0.5, mode="bilinear"))  # fmt: skip


def no_layers() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Flatten(), nn.Softmax(1))


VOLUME = {"volume": Input(("batch", 2, 8, 8, 8))}
POSITIONS = {"states": Input(("batch", 12, 24))}

CASES: list[Case] = [
    torch_case("unet", unet, IMAGE, opset=17),
    torch_case("unet-unfolded", unet, IMAGE, opset=13, fold_batchnorm=False),
    torch_case("grouped-dilated", grouped_dilated, IMAGE_FIXED, opset=12),
    torch_case("transposed-groups", transposed_groups, IMAGE, opset=18, dynamo=True),
    torch_case("transposed-1d", transposed_1d, SIGNAL, opset=11),
    torch_case("wavenet", wavenet, SIGNAL, opset=14),
    torch_case("volume", volume, VOLUME, opset=15, fold_batchnorm=False),
    torch_case("mixer", mixer, IMAGE, opset=19),
    torch_case("pixel-shuffle", pixel_shuffle, IMAGE, opset=20),
    torch_case("lstm", lambda: Recurrent(nn.LSTM, False), STATES, opset=17),
    torch_case("gru-bidirectional", lambda: Recurrent(nn.GRU, True), STATES, opset=14),
    torch_case("tied-embedding", Tied, TEXT, opset=17),
    torch_case("siamese", Siamese, IMAGE, opset=16),
    torch_case("matmul-left", Left, POSITIONS, opset=17),
    torch_case("experts", Experts, VECTOR, opset=17),
    torch_case("attention-23", Attention, STATES, opset=23, dynamo=True),
    torch_case("hypernetwork", HyperNetwork, VECTOR, opset=17),
    torch_case("weight-standardized", standardized, IMAGE, opset=17),
    torch_case("einsum", Einsum, STATES, opset=17),
    torch_case("scripted-loop", Rollout, VECTOR, opset=17),
    torch_case("dead-channels", Sparse, VECTOR, opset=17),
    torch_case("no-layers", no_layers, IMAGE, opset=17, fold_batchnorm=False),
    torch_case("external-data", perceptron, VECTOR, opset=22, dynamo=True, external=True),
]
