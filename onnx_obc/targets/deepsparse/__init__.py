"""DeepSparse."""

from ..engine import Engine
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
    check=rules.check,
    weight_forms={"dq": lower},
    shared_scale=True,
    latency_levels="cpu",
)
