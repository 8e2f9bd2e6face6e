"""Decoders with caches as exporters write them, made tiny, with random weights: node by node, without a framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH, INNER, HEADS, LAYERS, LONGEST = 96, 64, 96, 4, 2, 48
SIZE = WIDTH // HEADS
MICROSOFT = "com.microsoft"
INT, INT32, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


@dataclass(frozen=True)
class Config:
    """What tells decoders apart.

    norm: layer, rms, or skip (onnxruntime's SkipSimplifiedLayerNormalization). positions: learned, counted (of the
    mask, as OPT), rotary, partial, operator (onnxruntime's RotaryEmbedding), alibi, relative (T5), inside
    (GroupQueryAttention). kv: heads of keys and values. attention: plain, or onnxruntime's `grouped` and `multi`.
    cross: of what the encoder said, anew in each run (states), from caches (past), or either, by use_cache_branch
    (merged). head: tied to the table, or an own weight. packed: query, key and value are one product. parallel: one
    norm for attention and MLP. post: norms behind, not in front. caches: their names, or `stacked`.
    """

    name: str
    norm: str = "layer"
    positions: str = "learned"
    kv: int = HEADS
    bias: bool = True
    activation: str = "gelu"
    attention: str = "plain"
    cross: str = ""
    head: str = "own"
    packed: bool = False
    parallel: bool = False
    post: bool = False
    scaled: bool = False
    caches: str = "past_key_values.{}.{}"


OWN = "past_key_values.{}.decoder.{}"
CONFIGS = (
    Config("gpt2", head="tied", packed=True),
    Config("gpt2-stacked", head="tied", packed=True, caches="stacked"),
    Config("llama", "rms", "rotary", 2, False, "swiglu"),
    Config("qwen2", "rms", "rotary", 2, True, "swiglu", head="tied"),
    Config("gemma", "rms", "rotary", 1, False, "geglu", head="tied", scaled=True),
    Config("phi", positions="partial", parallel=True),
    Config("opt", positions="counted", activation="relu", head="tied"),
    Config("bloom", positions="alibi", packed=True, head="tied"),
    Config("t5", "rms", "relative", bias=False, activation="relu", cross="states", caches=OWN),
    Config("bart", cross="states", post=True, head="tied", caches="past_{1}_self_{0}"),
    Config("whisper-with-past", cross="past", head="tied", caches=OWN),
    Config("merged", cross="merged", caches=OWN),
    Config("grouped-query", "skip", "inside", 2, False, "swiglu", "grouped"),
    Config("multi-head", "skip", "operator", 4, False, "swiglu", "multi", head="tied"),
)  # fmt: skip


class _Net:
    """Collects nodes and constants; each call adds a node and returns its output."""

    def __init__(self, dtype: type[np.floating]) -> None:
        self.dtype, self.rng = dtype, np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def __call__(self, op: str, *inputs: str, out: str = "", domain: str = "", **attributes: object) -> str:
        number = len(self.nodes)
        outputs = (out or f"{op}_{number}").split(",")
        self.nodes.append(helper.make_node(op, inputs, outputs, f"node_{number}", domain=domain, **attributes))
        return outputs[0]

    def put(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.put(np.array(values), "i_" + "_".join(map(str, values)).replace("-", "m"))

    def floats(self, *shape: int, scale: float = 1.0, shift: float = 0.0, name: str = "") -> str:
        return self.put((self.rng.standard_normal(shape) * scale + shift).astype(self.dtype), name)

    def number(self, value: float) -> str:
        return self.put(np.array(value, self.dtype))

    def linear(self, x: str, inputs: int, outputs: int, bias: bool) -> str:
        y = self("MatMul", x, self.floats(inputs, outputs, scale=inputs**-0.5))
        return self("Add", self.floats(outputs, scale=0.1), y) if bias else y

    def norm(self, x: str, kind: str) -> str:
        gain = self.floats(WIDTH, scale=0.1, shift=1.0)
        if kind == "layer":
            return self("LayerNormalization", x, gain, self.floats(WIDTH, scale=0.1), axis=-1)
        if kind == "skip":
            return self("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=1e-5)
        square = self("ReduceMean", self("Mul", x, x), self.ints(-1))
        unit = self("Mul", x, self("Reciprocal", self("Sqrt", self("Add", square, self.number(1e-5)))))
        return self("Mul", gain, unit)

    def split(self, x: str, heads: int) -> str:
        """(batch, tokens, heads · size) to (batch, heads, tokens, size)."""
        return self("Transpose", self("Reshape", x, self.ints(0, 0, heads, SIZE)), perm=[0, 2, 1, 3])


def build(config: Config, dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """The model."""
    net = _Net(dtype)
    inputs: dict[str, tuple[int, list[int | str]]] = {"input_ids": (INT, ["batch", "tokens"])}
    inputs["attention_mask"] = (INT, ["batch", "total"])
    if config.positions in ("learned", "rotary", "partial", "operator") and not config.cross:
        inputs["position_ids"] = (INT, ["batch", "tokens"])
    outputs: dict[str, list[int | str]] = {"logits": ["batch", "tokens", WORDS]}
    table = net.floats(WORDS, WIDTH, scale=0.5, name="table")
    x = net("Gather", table, "input_ids")
    if config.scaled:
        x = net("Mul", x, net.number(WIDTH**0.5))
    old = _caches(net, config, inputs)
    shared = _positions(net, config, old[0][0])
    if config.positions in ("learned", "counted"):
        x = net("Add", x, net("Gather", net.floats(LONGEST, WIDTH, scale=0.2, name="places"), shared["places"]))
    if config.cross in ("states", "merged"):
        inputs["encoder_hidden_states"] = (net.kind, ["batch", "frames", WIDTH])
    if config.cross == "merged":
        inputs["use_cache_branch"] = (BOOL, [1])
    residual = ""
    for index in range(LAYERS):

        def normed(value: str) -> str:
            return value if config.post else net.norm(value, config.norm)

        def added(value: str, change: str) -> str:
            total = net("Add", value, change)
            return net.norm(total, config.norm) if config.post else total

        if config.norm == "skip":  # the sum and its norm are one operator
            if index == 0:
                residual, hidden = x, net.norm(x, "skip")
            residual, hidden = _skip(net, residual, _attend(net, config, hidden, index, old[index], shared, outputs))
            residual, hidden = _skip(net, residual, _mlp(net, config, hidden))
            continue
        hidden = normed(x)
        attended = _attend(net, config, hidden, index, old[index], shared, outputs)
        if config.parallel:
            x = net("Add", net("Add", attended, _mlp(net, config, hidden)), x)
            continue
        x = added(x, attended)
        if config.cross:
            x = added(x, _cross(net, config, normed(x), index, inputs, outputs))
        x = added(x, _mlp(net, config, normed(x)))
    x = hidden if config.norm == "skip" else x if config.post else net.norm(x, config.norm)
    weight = (
        net("Transpose", table, perm=[1, 0]) if config.head == "tied" else net.floats(WIDTH, WORDS, scale=WIDTH**-0.5)
    )
    net("MatMul", x, weight, out="logits")
    graph = helper.make_graph(
        net.nodes,
        config.name,
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, net.kind, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in net.constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def encoder(dtype: type[np.floating] = np.float32) -> onnx.ModelProto:
    """From tokens to what a decoder of the zoo looks at."""
    net = _Net(dtype)
    net("Tanh", net("Gather", net.floats(WORDS, WIDTH), "input_ids"), out="last_hidden_state")
    graph = helper.make_graph(
        net.nodes, "encoder",
        [helper.make_tensor_value_info("input_ids", INT, ["batch", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", net.kind, ["batch", "tokens", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in net.constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _caches(net: _Net, config: Config, inputs: dict[str, tuple[int, list[int | str]]]) -> list[tuple[str, str]]:
    """The old keys and values of each layer, (batch, kv, past, size)."""
    shape: list[int | str] = ["batch", config.kv, "past", SIZE]
    if config.caches == "stacked":
        for index in range(LAYERS):
            inputs[f"past_{index}"] = (net.kind, [2, *shape])
        sides = [net.put(np.array(side)) for side in (0, 1)]
        parts = [[net("Gather", f"past_{i}", side, axis=0) for side in sides] for i in range(LAYERS)]
        return [(key, value) for key, value in parts]
    found = [(config.caches.format(i, "key"), config.caches.format(i, "value")) for i in range(LAYERS)]
    inputs.update(dict.fromkeys((name for pair in found for name in pair), (net.kind, shape)))
    return found


def _positions(net: _Net, config: Config, old_key: str) -> dict[str, str]:
    """What all layers share: where tokens stand, and which they see."""
    zero, one = net.put(np.array(0), "zero"), net.put(np.array(1), "one")
    past = net("Gather", net("Shape", old_key), net.put(np.array(2), "two"))
    count = net("Gather", net("Shape", "input_ids"), one)
    total = net("Add", past, count)
    rows, columns = net("Range", past, total, one), net("Range", zero, total, one)
    shared = {"places": "position_ids" if not config.cross else net("Unsqueeze", rows, net.ints(0))}
    if config.positions == "counted":
        counted = net("Sub", net("CumSum", "attention_mask", one), one)
        shared["places"] = net("Slice", counted, net("Unsqueeze", past, net.ints(0)), net.ints(LONGEST), net.ints(1))
    if config.attention == "grouped":
        ones = net("ReduceSum", "attention_mask", net.ints(1), keepdims=0)
        shared["seen"] = net("Cast", net("Sub", ones, one), to=INT32)
        shared["total"] = net("Cast", net("Gather", net("Shape", "attention_mask"), one), to=INT32)
    behind = net("LessOrEqual", columns, net("Unsqueeze", rows, net.ints(1)))  # (tokens, total)
    given = net("Unsqueeze", net("Cast", "attention_mask", to=BOOL), net.ints(1, 2))
    seen = net("And", behind, given)  # (batch, 1, tokens, total)
    low = -1e4 if net.dtype == np.float16 else -1e9
    shared["mask"] = net("Where", seen, net.number(0), net.number(low))
    if config.positions == "alibi":
        steps = net("Cast", net("CumSum", "attention_mask", one), to=net.kind)
        slopes = net.put((2.0 ** -np.arange(1, HEADS + 1)).astype(net.dtype).reshape(1, HEADS, 1, 1))
        shared["mask"] = net("Add", shared["mask"], net("Mul", slopes, net("Unsqueeze", steps, net.ints(1, 2))))
    if config.positions == "relative":
        apart = net("Sub", net("Unsqueeze", rows, net.ints(1)), columns)
        bucket = net("Max", net("Min", apart, net.put(np.array(15))), zero)
        bias = net("Gather", net.floats(16, HEADS), bucket)  # (tokens, total, heads)
        shared["mask"] = net("Add", net("Transpose", bias, perm=[2, 0, 1]), shared["mask"])
    turned = SIZE // 2 if config.positions == "partial" else SIZE
    angles = np.arange(LONGEST)[:, None] * 100.0 ** (-np.arange(0, turned, 2) / turned)
    if config.positions in ("rotary", "partial"):
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            found = net("Gather", net.put(table.astype(net.dtype)), "position_ids")
            shared[name] = net("Unsqueeze", found, net.ints(1))  # (batch, 1, tokens, size / 2)
    if config.positions in ("operator", "inside"):
        shared["cos"], shared["sin"] = (
            net.put(f(angles).astype(net.dtype), n) for f, n in ((np.cos, "c"), (np.sin, "s"))
        )
    return shared


def _rotated(net: _Net, config: Config, x: str, shared: dict[str, str]) -> str:
    """Queries or keys (batch, heads, tokens, size) turned by their places."""
    if config.positions == "operator":
        return net("RotaryEmbedding", x, "position_ids", shared["cos"], shared["sin"], domain=MICROSOFT)
    if config.positions not in ("rotary", "partial"):
        return x
    rest = ""
    if config.positions == "partial":
        half = SIZE // 2
        x = net("Split", x, net.ints(half, SIZE - half), out=f"{x}_turn,{x}_rest", axis=-1)
        rest = x.replace("_turn", "_rest")
    a = net("Split", x, out=f"{x}_a,{x}_b", axis=-1, num_outputs=2)
    b = f"{x}_b"
    first = net("Sub", net("Mul", a, shared["cos"]), net("Mul", b, shared["sin"]))
    second = net("Add", net("Mul", b, shared["cos"]), net("Mul", a, shared["sin"]))
    return net("Concat", first, second, *([rest] if rest else []), axis=-1)


def _attend(
    net: _Net, config: Config, x: str, index: int, old: tuple[str, str], shared: dict[str, str],
    outputs: dict[str, list[int | str]],
) -> str:  # fmt: skip
    """Attention to the tokens before, and the caches with the new ones."""
    wide = config.kv * SIZE
    shape: list[int | str] = ["batch", config.kv, "total", SIZE]
    new = [name.replace("past_key_values", "present").replace("past", "present") for name in old]
    if config.packed:
        flat = net("Gemm", net("Reshape", x, net.ints(-1, WIDTH)), net.floats(WIDTH, 3 * WIDTH, scale=WIDTH**-0.5),
                   net.floats(3 * WIDTH, scale=0.1))  # fmt: skip
        three = net("Concat", net("Shape", x, start=0, end=2), net.ints(3 * WIDTH), axis=0)
        net("Split", net("Reshape", flat, three), out=f"q{index},k{index},v{index}", axis=-1, num_outputs=3)
        q, k, v = (f"{part}{index}" for part in "qkv")
    else:
        q, k, v = (net.linear(x, WIDTH, size, config.bias) for size in (WIDTH, wide, wide))
    if config.attention == "grouped":
        outputs.update(dict.fromkeys(new, shape))
        mixed = net(
            "GroupQueryAttention", q, k, v, *old, *(shared[name] for name in ("seen", "total", "cos", "sin")),
            out=f"mixed{index},{new[0]},{new[1]}", domain=MICROSOFT,
            num_heads=HEADS, kv_num_heads=config.kv, do_rotary=1,
        )  # fmt: skip
        return net.linear(mixed, WIDTH, WIDTH, config.bias)
    if config.attention == "multi":
        outputs.update(dict.fromkeys(new, shape))
        q, k = (
            net("Reshape", net("Transpose", _rotated(net, config, net.split(part, HEADS), shared), perm=[0, 2, 1, 3]),
                net.ints(0, 0, WIDTH)) for part in (q, k)
        )  # fmt: skip
        mixed = net(
            "MultiHeadAttention", q, k, v, "", "", shared["mask"], *old,
            out=f"mixed{index},{new[0]},{new[1]}", domain=MICROSOFT, num_heads=HEADS,
        )  # fmt: skip
        return net.linear(mixed, WIDTH, WIDTH, config.bias)
    q = _rotated(net, config, net.split(q, HEADS), shared)
    k, v = _rotated(net, config, net.split(k, config.kv), shared), net.split(v, config.kv)
    if config.caches == "stacked":
        key, value = net("Concat", old[0], k, axis=2), net("Concat", old[1], v, axis=2)
        net(
            "Concat",
            net("Unsqueeze", key, net.ints(0)),
            net("Unsqueeze", value, net.ints(0)),
            out=f"present_{index}",
            axis=0,
        )
        outputs[f"present_{index}"] = [2, *shape]
    else:
        outputs.update(dict.fromkeys(new, shape))
        key, value = net("Concat", old[0], k, out=new[0], axis=2), net("Concat", old[1], v, out=new[1], axis=2)
    return net.linear(_mixed(net, q, key, value, shared["mask"], config.kv), WIDTH, WIDTH, config.bias)


def _mixed(net: _Net, q: str, key: str, value: str, mask: str, kv: int = HEADS) -> str:
    """(batch, tokens, width) of what each query attends to. kv: heads of keys and values."""
    if (groups := HEADS // kv) > 1:
        wide = [[net("Unsqueeze", part, net.ints(2))] * groups for part in (key, value)]  # (batch, kv, 1, total, size)
        key, value = (net("Reshape", net("Concat", *parts, axis=2), net.ints(0, HEADS, -1, SIZE)) for parts in wide)
    scores = net("MatMul", net("Mul", q, net.number(SIZE**-0.5)), net("Transpose", key, perm=[0, 1, 3, 2]))
    shares = net("Softmax", net("Add", scores, mask) if mask else scores, axis=-1)
    return net("Reshape", net("Transpose", net("MatMul", shares, value), perm=[0, 2, 1, 3]), net.ints(0, 0, WIDTH))


def _cross(
    net: _Net, config: Config, x: str, index: int, inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
) -> str:  # fmt: skip
    """Attention to what the encoder said."""
    q = net.split(net.linear(x, WIDTH, WIDTH, config.bias), HEADS)
    names = [f"past_key_values.{index}.encoder.{part}" for part in ("key", "value")]
    both = []
    if config.cross != "past":
        both = [net.split(net.linear("encoder_hidden_states", WIDTH, WIDTH, config.bias), HEADS) for _ in names]
    if config.cross != "states":
        inputs.update(dict.fromkeys(names, (net.kind, ["batch", HEADS, "frames_past", SIZE])))
    if config.cross == "past":
        both = names
    if config.cross == "merged":
        for i, name in enumerate(names):
            then, other = (
                helper.make_graph(
                    [helper.make_node("Identity", [source], [f"{kind}_{index}_{i}"])], kind, [],
                    [helper.make_tensor_value_info(f"{kind}_{index}_{i}", net.kind, None)],
                )
                for kind, source in (("kept", name), ("made", both[i]))
            )  # fmt: skip
            new = name.replace("past_key_values", "present")
            both[i] = net("If", "use_cache_branch", out=new, then_branch=then, else_branch=other)
            outputs[new] = ["batch", HEADS, "frames_out", SIZE]
    return net.linear(_mixed(net, q, *both, ""), WIDTH, WIDTH, config.bias)


def _mlp(net: _Net, config: Config, x: str) -> str:
    gate = net.linear(x, WIDTH, INNER, config.bias)
    match config.activation:
        case "relu":
            inner = net("Relu", gate)
        case "swiglu":
            inner = net("Mul", net("Mul", gate, net("Sigmoid", gate)), net.linear(x, WIDTH, INNER, config.bias))
        case _:
            erf = net("Add", net("Erf", net("Div", gate, net.number(2**0.5))), net.number(1))
            inner = net("Mul", net("Mul", gate, erf), net.number(0.5))
            if config.activation == "geglu":
                inner = net("Mul", inner, net.linear(x, WIDTH, INNER, config.bias))
    return net.linear(inner, INNER, WIDTH, config.bias)


def _skip(net: _Net, residual: str, change: str) -> tuple[str, str]:
    """The sum, and its norm."""
    number = len(net.nodes)
    normed = net("SkipSimplifiedLayerNormalization", residual, change, net.floats(WIDTH, scale=0.1, shift=1.0),
                 out=f"normed_{number},,,sum_{number}", domain=MICROSOFT, epsilon=1e-5)  # fmt: skip
    return f"sum_{number}", normed
