"""DeepSparse."""

from functools import partial

from ..engine import Engine
from ..onnxruntime.biases import fit_to_biases
from ..target import Target
from . import engine, rules
from .lowering import lower

TARGET = Target(
    name="deepsparse",
    title="DeepSparse",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    fit_to_biases=partial(fit_to_biases, shared_scale=True),
    check=rules.check,
    weight_forms={"dq": lower},
    shared_scale=True,
    divided_inputs=False,
    zeros="zeros are skipped, in blocks of 4 together with integers",
    latency_levels="cpu",
    size_levels="cpu",
)
