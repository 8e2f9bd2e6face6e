"""OpenVINO on a CPU."""

from ..engine import Engine
from ..target import Target
from . import engine, rules

TARGET = Target(
    name="openvino",
    title="OpenVINO",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    check=rules.check,
    zero_points=lambda activation_bits: activation_bits is None,  # its integer kernels have none
)
