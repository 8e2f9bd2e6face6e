"""TensorRT."""

from ..engine import Engine
from ..target import Target
from . import check, engine, rules
from .weights import quantize_in_graph

TARGET = Target(
    name="tensorrt",
    title="TensorRT",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    unprofitable=rules.unprofitable,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    check=check.check,
    weight_forms={"dq": None, "qdq": quantize_in_graph},
    signed_activations=True,
    embeddings=False,
    latency_levels="gpu",
    build_elsewhere=engine.build_elsewhere,
)
