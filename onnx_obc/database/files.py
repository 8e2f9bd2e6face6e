"""The files of a database: what is in each, how it is keyed, and what is wrong with one that cannot be used.

A folder that can be moved and copied, described in docs/database.md:

    manifest.json                       what the database is of, its layers, and the key of every solution
    model.onnx                          the dense model
    samples.safetensors                 feeds for sensitivities, corrections and comparisons
    orders.safetensors                  the order of channels that layers are solved in
    ranges/NUMBER.safetensors           histograms of activations
    hessians/LAYER.safetensors          the Hessian of one layer's input, shared by layers that read the same
    layers/LAYER/LEVEL.safetensors      one solution
    sensitivity/KIND.json               losses that were measured
    trained/KEY.safetensors             a part of a model that was trained

Every array file says in its header by what key it was made, and has a checksum. Each is written under a temporary name
and renamed, so that a file that is there is whole, and two builds that differ only in interruptions are equal byte for
byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..core.arrays import Array
from ..core.errors import DatabaseError, RecipeError
from ..core.files import read_regular, write_file
from ..core.level import FLOAT, Choice, parse_choice, parse_level
from ..core.solution import Grid, Solution
from ..graph.tensors import tensors
from ..targets.names import TargetName

SCHEMA = 3  # rises when what is kept is written or computed otherwise: only solutions have a version of their own
HEADER = "onnx_obc"  # the one entry of a file's metadata: several would be written in random order
REPAIR = "run the same onnx-obc build again: it makes anew what is missing and keeps the rest"


@dataclass(frozen=True)
class LayerEntry:
    """One layer in the manifest. folder: its name as a folder; hessian: the file of its Hessian, without ending.

    solutions: the key of each level's solution. choices: what it can become, as text, dense first.
    """

    name: str
    op: str
    groups: int
    rows: int
    columns: int
    folder: str
    hessian: str
    choices: tuple[str, ...]
    solutions: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. Keys are hashes of contents; `recipe` and `calibration` are for people and reports.

    complete: every solution is there. levels: all choices of the level sets, whether or not each layer can take each.
    ranges: the key of each file of ranges, by its name without ending. ordered: the layers that the ordered solver
    solves, and on how many rows each is compared with the exact one. orders: the key of the file of orders; None:
    channels stay as the model has them. Both are decided once, so that builds agree.
    """

    schema: int
    version: str
    complete: bool
    model: str
    samples: str
    recipe: Mapping[str, Any]
    calibration: Mapping[str, Any]
    levels: tuple[str, ...]
    ranges: Mapping[str, str]
    layers: tuple[LayerEntry, ...]
    ordered: Mapping[str, int] | None = None
    orders: str | None = None


def content_key(*parts: object) -> str:
    """A hash of arrays, bytes and plain values, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.hasobject:  # text, of which the array holds addresses alone
            digest.update(json.dumps([part.shape, part.ravel().tolist()], default=str).encode())
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data if part.size else b"")
        elif isinstance(part, bytes):
            digest.update(part)
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def model_key(model: ir.Model) -> str:
    """A hash of all that a model computes: its nodes, names, attributes and weights, not of how it was stored."""
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [
        [n.domain, n.op_type, [v and v.name for v in n.inputs], [v.name for v in n.outputs], _attributes(n)]
        for owner in owners
        for n in owner.all_nodes()
    ]
    ends = [[(v.name, str(v.shape), str(v.dtype)) for v in part] for part in (model.graph.inputs, model.graph.outputs)]
    weights = [content_key(tensor.numpy()) for tensor in tensors(model)]
    return content_key(nodes, ends, list(model.graph.initializers), weights, dict(model.opset_imports))


def layer_folder(index: int, name: str) -> str:
    """A layer's name as the name of a folder: its place in the graph, and what of its name every file system takes."""
    return f"{index:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '_', name).strip('_')[-60:]}"


def level_file(level: str) -> str:
    """The file name of a level's solution."""
    return f"{level.replace(':', 'of')}.safetensors"


def write_arrays(path: Path, arrays: Mapping[str, Array], key: str, info: Mapping[str, Any]) -> None:
    """Write arrays with what is known of them. Raises OutputError."""
    write_file(path, arrays_bytes(arrays, key, info))


def arrays_bytes(arrays: Mapping[str, Array], key: str, info: Mapping[str, Any]) -> bytes:
    """A file of arrays with what is known of them. Equal contents give equal bytes."""
    whole = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    header = {"key": key, "checksum": _checksum(whole, info), "info": info}
    return save(whole, {HEADER: json.dumps(header, sort_keys=True, allow_nan=False)})


def read_arrays(path: Path, key: str | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays of a file, and what was written of them. Raises DatabaseError if it is missing, damaged or stale."""
    header = _header(path)
    if header is None:
        what = "is damaged" if path.exists() else "is missing"
        raise DatabaseError(f"{path} {what}; {REPAIR}")
    if key is not None and header["key"] != key:
        raise DatabaseError(f"{path} was made from something else than the rest of the database; {REPAIR}")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise DatabaseError(f"{path} is damaged ({error}); {REPAIR}") from error
    if _checksum(arrays, header["info"]) != header["checksum"]:
        raise DatabaseError(f"{path} is damaged: its checksum is wrong; {REPAIR}")
    return arrays, header["info"]


def has_arrays(path: Path, key: str) -> bool:
    """Whether a sound file of this key is there."""
    try:
        read_arrays(path, key)
    except DatabaseError:
        return False
    return True


def solution_bytes(solution: Solution, key: str, report: Mapping[str, Any]) -> bytes:
    """The file of a solution that is not dense float, and of the report on it: of sparse floats what was kept."""
    arrays: dict[str, Array] = {}
    if solution.mask is not None:
        arrays["mask"] = np.packbits(solution.mask)
    if solution.codes is not None and solution.grid is not None:
        arrays["codes"] = solution.codes.astype(np.int8 if solution.grid.symmetric else np.uint8)
        arrays["scale"], arrays["zero_point"] = solution.grid.scale, solution.grid.zero_point
    else:
        assert solution.mask is not None
        arrays["kept"] = solution.weights[solution.mask]
    if solution.bias is not None:
        arrays["bias"] = solution.bias
    info = {
        "level": str(solution.level),
        "shape": solution.weights.shape,
        "loss": solution.loss,
        "loss_greedy": solution.loss_greedy,
        "report": report,
    }
    return arrays_bytes(arrays, key, info)


def read_solution(path: Path, key: str) -> tuple[Solution, dict[str, Any]]:
    """A solution and its report, as they were written. Raises DatabaseError."""
    arrays, info = read_arrays(path, key)
    shape, level = tuple(info["shape"]), parse_level(info["level"])
    mask, codes, grid = None, None, None
    if "mask" in arrays:
        mask = np.unpackbits(arrays["mask"], count=int(np.prod(shape))).astype(np.bool_).reshape(shape)
    if level.bits is not None:
        grid = Grid(arrays["scale"], arrays["zero_point"], level.bits, level.symmetric, level.block)
        codes = arrays["codes"].astype(np.int32)
        weights = grid.dequantize(codes)
    else:
        weights = np.zeros(shape, np.float32)
        weights[mask] = arrays["kept"]
    losses = info["loss"], info["loss_greedy"]
    return Solution(level, weights, codes, grid, mask, *losses, arrays.get("bias")), info["report"]


def read_report(path: Path, key: str) -> dict[str, Any]:
    """Only the report of a solution. Raises DatabaseError."""
    header = _header(path)
    if header is None or header["key"] != key:
        raise DatabaseError(f"{path} is missing, damaged, or of something else than the rest of the database; {REPAIR}")
    report: dict[str, Any] = header["info"]["report"]
    return report


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json. Raises OutputError."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, allow_nan=False)
    write_file(folder / "manifest.json", f"{text}\n".encode())


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a database, also of one that is unfinished; None if there is none.

    Raises DatabaseError for a manifest that is damaged, or of a schema that is not this one.
    """
    path = folder / "manifest.json"
    try:
        plain = json.loads(read_regular(path))
        schema = plain["schema"]
        if schema == SCHEMA:
            layers = tuple(LayerEntry(**{**x, "choices": tuple(x["choices"])}) for x in plain["layers"])
            manifest = Manifest(**{**plain, "levels": tuple(plain["levels"]), "layers": layers})
            _check(manifest)
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RecipeError) as error:
        raise DatabaseError(f"{path} is damaged; delete it, then {REPAIR}") from error
    if isinstance(schema, int) and schema > SCHEMA:
        raise DatabaseError(f"{folder} was made by a newer onnx-obc (schema {schema}, not {SCHEMA}); upgrade onnx-obc")
    raise DatabaseError(
        f"{folder} was made by an older onnx-obc (schema {schema}, not {SCHEMA}); build it again in another folder"
    )


def _check(manifest: Manifest) -> None:
    """Raise ValueError or RecipeError for what no build writes: others may have changed it by hand."""
    texts = (manifest.version, manifest.model, manifest.samples, *manifest.ranges.values())
    _demand(all(isinstance(text, str) for text in texts) and isinstance(manifest.complete, bool))
    _demand(isinstance(manifest.recipe, dict) and isinstance(manifest.calibration, dict))
    _demand(manifest.recipe["target"] in get_args(TargetName))
    _demand(isinstance(manifest.recipe["skip"], list) and isinstance(manifest.calibration["notes"], list))
    _demand(all(isinstance(x, str) for x in (*manifest.recipe["skip"], *manifest.calibration["notes"])))
    _demand(all(_is_name(name) for name in manifest.ranges))
    _demand(manifest.ordered is None or all(type(rows) is int for rows in manifest.ordered.values()))
    _demand(manifest.orders is None or isinstance(manifest.orders, str))
    for text in manifest.levels:
        parse_choice(text)
    for x in manifest.layers:
        _demand(isinstance(x.name, str) and isinstance(x.op, str) and _is_name(x.folder) and _is_name(x.hessian))
        _demand(all(type(size) is int and size > 0 for size in (x.groups, x.rows, x.columns)))
        choices = [parse_choice(text) for text in x.choices]
        _demand(choices[:1] == [Choice(FLOAT)])
        levels = {str(choice.level) for choice in choices} - {str(FLOAT)}
        _demand(all(isinstance(key, str) for key in x.solutions.values()))
        _demand(levels <= x.solutions.keys() or not manifest.complete)


def _demand(sound: bool) -> None:
    if not sound:
        raise ValueError("the manifest is not what a build writes")


def _is_name(value: object) -> bool:
    """Whether this can be a file's or folder's name, and leads nowhere else."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", value) is not None


def _header(path: Path) -> dict[str, Any] | None:
    """What a file says of itself; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[HEADER])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError):
        return None
    whole = isinstance(header, dict) and {"key", "checksum", "info"} <= header.keys()
    return header if whole else None


def _checksum(arrays: Mapping[str, Array], info: Mapping[str, Any]) -> str:
    return content_key(info, *(part for name in sorted(arrays) for part in (name, arrays[name])))


def _attributes(node: ir.Node) -> list[tuple[str, str]]:
    """A node's attributes as text; tensors and bodies are hashed elsewhere."""
    kinds = ir.AttributeType
    elsewhere = (kinds.TENSOR, kinds.TENSORS, kinds.GRAPH, kinds.GRAPHS)
    found = node.attributes.values()
    plain = [(a.name, repr(a.value)) for a in found if not a.is_ref() and a.type not in elsewhere]
    return sorted(plain + [(a.name, f"@{a.ref_attr_name}") for a in found if a.is_ref()])
