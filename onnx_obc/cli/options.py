"""The options of the command line, grouped by what they decide. None: the recipe file, or else the default, decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from cyclopts import Group, Parameter

from ..pipeline.options import Activations, Weights
from ..targets.names import TargetName

LEVELS = Group("What the layers become", sort_key=1)
DATA = Group("Calibration data", sort_key=2)
METHOD = Group("How it is done", sort_key=4)
SEARCH = Group("How a budget chooses", sort_key=3)
RUN = Group("Run", sort_key=5)

Flag = Parameter(negative="")
Several = Parameter(consume_multiple=True)

# The same words in every command.
Output: TypeAlias = Annotated[Path, Parameter(name=("--output", "-o"), group="Arguments")]
Report: TypeAlias = Annotated[Path | None, Parameter(name=("--report", "--json"), group=RUN)]
Target: TypeAlias = Annotated[TargetName, Parameter(group=RUN)]


@Parameter(name="*", group=LEVELS)
@dataclass(frozen=True)
class UniformOptions:
    """What all layers become, where no budget chooses."""

    weights: Weights | None = None
    """The weights of every layer. [default: int8]"""
    activations: Activations | None = None
    """The inputs of layers with integer weights; int4 is simulated: no kernel computes with it. [default: int8]"""
    sparsity: str | None = None
    """Which weights become zero: 2:4, 4:8, block4:0.7 (70 % of blocks of 4), 0.6 (anywhere), none. [default: none]"""
    strict_pattern: Annotated[bool | None, Flag] = None
    """Leave layers in float that cannot take the sparsity pattern; otherwise they become integers without zeros."""
    asymmetric: bool | None = None
    """Give every weight row, or block, a zero point. [default: below 8 bits, but not for tensorrt]"""
    block: Literal[16, 32, 64, 128, 256] | None = None
    """So many consecutive weights of a row share a scale, in MatMul and Gemm. [default: the whole row]"""


@Parameter(name="*", group=LEVELS)
@dataclass(frozen=True)
class TargetOptions:
    """What decides which levels there are, and what the solver makes of them."""

    target: TargetName | None = None
    """The runtime to write for. [default: onnxruntime]"""


@Parameter(name="*", group=METHOD)
@dataclass(frozen=True)
class MethodOptions:
    """How layers are solved."""

    solver: Literal["auto", "exact", "ordered", "baseline"] | None = None
    """auto: exact, or ordered for huge layers; baseline: rounding and magnitude, to compare with. [default: auto]"""
    time_limit: float | None = None
    """Seconds for solving all layers: auto then solves exactly as many as fit."""
    refine: Literal["none", "auto"] | int | None = None
    """Search for better solutions from the greedy's: none, auto, or for so many sweeps. [default: auto]"""
    grid: Literal["mse", "minmax"] | None = None
    """How a weight row's scale is found: mse clips where that lowers the error, minmax never. [default: mse]"""
    all_positions: bool | None = None
    """Use every position of every sample for the Hessians, not a draw of 64 for every column."""
    damp: float | None = None
    """Damping, relative to the mean of the Hessian's diagonal. [default: for each layer by held-out samples]"""
    precision: Literal["auto", "float32", "float64"] | None = None
    """The solver's arithmetic; auto takes float64 where float32 would not do. [default: auto]"""
    seed: int | None = None
    """Of every random draw. [default: 0]"""


@Parameter(name="*")
@dataclass(frozen=True)
class FinishOptions:
    """What happens to a model once its layers have their levels."""

    weight_form: Annotated[Literal["dq", "qdq"] | None, Parameter(group=LEVELS)] = None
    """For tensorrt: integer weights behind DequantizeLinear, or, for old releases, floats behind both. [default: dq]"""
    embeddings: Annotated[Literal["float", "int8", "int4"] | None, Parameter(group=LEVELS)] = None
    """Store the tables of Gather as integers, by rounding. [default: float]"""
    ranges: Annotated[Literal["mse", "minmax", "percentile"] | None, Parameter(group=METHOD)] = None
    """How the range of an activation is found. [default: mse]"""
    correct: Annotated[bool | None, Parameter(group=METHOD)] = None
    """Bring the statistics of layer outputs back to the dense model's, where that helps. [default: yes]"""
    sequential: Annotated[bool | None, Parameter(group=METHOD)] = None
    """Solve layers in order, each on the inputs that the compressed ones before it produce. [default: no]"""
    global_adaprune: Annotated[int | None, Parameter(group=METHOD)] = None
    """Epochs of gradient steps on all remaining weights at the end; needs torch and onnx2torch. [default: 0]"""
    verify: Annotated[bool | None, Parameter(group=RUN)] = None
    """Read the file back and check it. [default: yes]"""


@Parameter(name="*", group=RUN)
@dataclass(frozen=True)
class RunOptions:
    """Where and with what it runs."""

    device: Literal["auto", "cpu", "cuda"] | None = None
    """Where the model runs and the layers are solved. [default: auto: a GPU if there is one]"""
    threads: int | None = None
    """How many threads solve; the result does not depend on it. [default: all cores]"""
    memory: float | None = None
    """GiB for Hessians and activations at a time. [default: half of what is free]"""


@Parameter(name="*", group=SEARCH)
@dataclass(frozen=True)
class SearchingOptions:
    """How a budget chooses levels."""

    sensitivity: Literal["layer", "output", "task"] = "output"
    """What a level of a layer costs in quality: its layer loss, the loss of the model's outputs with only that layer
    compressed, or a task loss. [default: output]"""
    search: Literal["dp", "spdy"] = "dp"
    """dp: the optimum for the sum of sensitivities; spdy: a search around it, judged on whole models. [default: dp]"""
    task: str | None = None
    """module.py:function(outputs, labels) giving a loss, for --sensitivity task; without it, labels are looked at."""
    timings: Path | None = None
    """A table of seconds that onnx-obc time wrote, for --budget latency. [default: measured here]"""
    timing_batch: int = 1
    """Samples in a run that --budget latency is about. [default: 1]"""
    other_machine: Annotated[bool, Flag] = False
    """Let --timings of another machine pass: the speed-up is then predicted, not measured."""


@Parameter(name="*", group=DATA)
@dataclass(frozen=True)
class CalibrationOptions:
    """The fields of DataOptions, but for the seed."""

    samples: int | None = None
    """Read at most so many samples, evenly spread over the data. [default: 1024]"""
    batch: int | None = None
    """Samples in a feed, where the model leaves the batch free. [default: 32]"""
    preprocess: Literal["imagenet", "tf", "unit", "raw"] | None = None
    """How images become inputs."""
    mean: Annotated[tuple[float, ...] | None, Several] = None
    """Mean of every channel, of pixels in 0 … 1; instead of --preprocess."""
    std: Annotated[tuple[float, ...] | None, Several] = None
    """Standard deviation of every channel, of pixels in 0 … 1."""
    size: tuple[int, int] | None = None
    """Height and width of the images, where the model leaves them free."""
    layout: Literal["NCHW", "NHWC"] | None = None
    """The order of the image dimensions, where it cannot be told from the model."""
    augment: int = 1
    """Use every image so often: once as it is, then flipped and cropped at random. [default: 1]"""
    tokenizer: str | None = None
    """The tokenizer.json for text."""
    max_tokens: int | None = None
    """Cut texts to so many tokens. [default: 128]"""
    allow_random: Annotated[bool, Flag] = False
    """Let --calib random pass."""
