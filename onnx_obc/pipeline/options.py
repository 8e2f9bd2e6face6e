"""The options of a recipe, in the groups in which commands take them; light to import, validated by `Recipe`.

Every option is said here, once: its values, its default and what it does. docs/recipe.md says more on each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le

from ..core.options import Doc
from ..targets.names import TargetName

Activations: TypeAlias = Literal["none", "int8", "dynamic", "int16", "int4"]
Weights: TypeAlias = Literal["float", "int8", "int7", "int6", "int5", "int4", "int3", "int2"]
BlockSize: TypeAlias = Literal[16, 32, 64, 128, 256]
Cast: TypeAlias = Literal["none", "float32"]
LEARNED = ("adaround", "adaquant", "brecq")  # solvers that learn rounding by gradients on parts of the model
OWN = ("auto", "exact", "ordered")  # solvers of the tool's own; the others are there to be compared with


@dataclass(frozen=True)
class UniformOptions:
    """What all layers become, where no budget chooses: each fixes a level."""

    weights: Annotated[Weights, Doc("The weights of every layer.")] = "int8"
    activations: Annotated[
        Activations,
        Doc(
            "The inputs of layers with integer weights. int8: on ranges that calibration found; dynamic: 8 bits on the "
            "range of each input; int16, int4: simulated, no kernel computes with them."
        ),
    ] = "int8"
    sparsity: Annotated[
        str, Doc("Which weights become zero: 2:4, 4:8, block4:0.7 (70 % of blocks of 4), 0.6 (anywhere), none.")
    ] = "none"
    strict_pattern: Annotated[
        bool, Doc("Leave layers in float that cannot take the sparsity pattern, not in integers without zeros.")
    ] = False
    asymmetric: Annotated[
        bool | None,
        Doc("Give every weight row, or block, a zero point. [default: below 8 bits, where the target takes them]"),
    ] = None
    block: Annotated[
        BlockSize | None, Doc("Weights per scale, along a row, in MatMul and Gemm. [default: the whole row]")
    ] = None


@dataclass(frozen=True)
class MethodOptions:
    """What solutions depend on."""

    target: Annotated[TargetName, Doc("The runtime to write for.")] = "onnxruntime"
    solver: Annotated[
        Literal["auto", "exact", "ordered", "baseline", "gmp", "lobs", "adaprune", "adaround", "adaquant", "brecq"],
        Doc(
            "auto: exact, or ordered for huge layers. To compare with: baseline (rounding and magnitude); gmp, lobs, "
            "adaprune (which prune); adaround, adaquant, brecq (which round)."
        ),
    ] = "auto"
    iterations: Annotated[
        int | None,
        Ge(1),
        Le(1_000_000),
        Doc(
            "Gradient steps of adaprune, or for each layer or block of adaround, adaquant and brecq. "
            "[default: as published; adaprune: least squares instead]"
        ),
    ] = None
    time_limit: Annotated[
        float | None, Gt(0), Doc("Seconds for solving all layers: auto then solves exactly as many as fit.")
    ] = None
    refine: Annotated[
        Literal["none", "auto"] | int, Doc("Local search after the greedy: none, auto, or for so many sweeps.")
    ] = "auto"
    grid: Annotated[
        Literal["mse", "minmax"],
        Doc("How a weight row's scale is found: mse clips where that lowers the error, minmax never."),
    ] = "mse"
    all_positions: Annotated[
        bool, Doc("Use every position of every sample for the Hessians, not a draw of 64 for every column.")
    ] = False
    damp: Annotated[
        float | None,
        Ge(0),
        Doc("Damping, relative to the mean of the Hessian's diagonal. [default: for each layer by held-out samples]"),
    ] = None
    precision: Annotated[
        Literal["auto", "float32", "float64"],
        Doc("The solver's arithmetic; auto takes float64 where float32 would not do."),
    ] = "auto"
    seed: Annotated[int, Ge(0), Doc("Random seed.")] = 0


@dataclass(frozen=True)
class FinishOptions:
    """What happens to a model once its layers have their levels."""

    weight_form: Annotated[
        Literal["dq", "qdq"],
        Doc("For tensorrt: integer weights behind DequantizeLinear, or, for old releases, floats behind both."),
    ] = "dq"
    accuracy_level: Annotated[
        Literal[0, 1, 4] | None,
        Doc("For onnxruntime: write weights in blocks as MatMulNBits that computes in floats (0, 1) or in int8 (4)."),
    ] = None
    float16: Annotated[
        bool, Doc("Write in float16 what stays float, but for operators that would lose too much by it.")
    ] = False
    float16_io: Annotated[bool, Doc("With float16: the inputs and outputs of the model too.")] = False
    embeddings: Annotated[
        Literal["float", "int8", "int4"], Doc("Store the tables of Gather as integers, by rounding.")
    ] = "float"
    ranges: Annotated[Literal["mse", "minmax", "percentile"], Doc("How the range of an activation is found.")] = "mse"
    effort: Annotated[
        Literal["fast", "normal", "best"],
        Doc(
            "fast: layers are solved, no more. normal: those of few bits in order, the statistics of outputs are "
            "brought back to the dense model's, where that helps, and where weights have zeros or inputs 4 bits, parts "
            "of a small model are trained for a minute or two towards its outputs, without labels, if torch is "
            "installed. best: parts are trained at all levels, for longer; needs torch and onnx2torch."
        ),
    ] = "normal"
    sequential: Annotated[
        bool | None,
        Doc(
            "Solve layers in order, each on the inputs that the compressed ones before it produce, where that helps. "
            "[default: at fewer than 8 bits without zeros, where no budget is given and --effort is not fast]"
        ),
    ] = None
    reconstruction: Annotated[
        bool | None,
        Doc(
            "Train parts of the model towards what the dense ones compute. [default: with --effort best; with normal "
            "where weights have zeros or inputs 4 bits, no budget is given, and the model is small]"
        ),
    ] = None
    global_adaprune: Annotated[
        int,
        Ge(0),
        Le(1000),
        Doc("Epochs of gradient steps on all remaining weights at the end; needs torch and onnx2torch."),
    ] = 0
    verify: Annotated[bool, Doc("Read the file back and check it.")] = True
    measure_speed: Annotated[
        bool, Doc("Time the file against the dense model in its target, where that is installed here.")
    ] = True
    timing_batch: Annotated[int, Ge(1), Le(65536), Doc("Samples in a run that is timed.")] = 1
    min_quality: Annotated[
        str | None,
        Doc(
            "What the file must keep: 30dB (of the worst output), agreement=99%, metric=0.82, or drop=1% of --metric. "
            "As few layers, or inputs of layers, as it takes stay float; a file that none helps is refused."
        ),
    ] = None
    min_speedup: Annotated[
        float | None,
        Gt(0),
        Doc("Refuse a file that its target does not run so many times faster than the dense model."),
    ] = None
    fix_slow: Annotated[
        bool, Doc("Return layers to float that the target runs slower than before, where the whole is then faster.")
    ] = False


@dataclass(frozen=True)
class RunOptions:
    """Where and with what it runs."""

    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Doc("Where the model runs and the layers are solved; auto: on a GPU if there is one."),
    ] = "auto"
    threads: Annotated[
        int | None,
        Ge(1),
        Le(1024),
        Doc("How many threads solve; the result does not depend on it. [default: all cores]"),
    ] = None
    cast: Annotated[Cast, Doc("float32: make what is float64 in the model float32, before all else.")] = "none"
    memory: Annotated[
        float | None, Gt(0), Doc("GiB for Hessians and activations at a time. [default: half of what is free]")
    ] = None
