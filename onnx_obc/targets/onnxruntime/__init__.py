"""onnxruntime on a CPU."""

from ..engine import Engine
from ..target import Target
from . import biases, check, engine, rules

TARGET = Target(
    name="onnxruntime",
    title="onnxruntime",
    engine=Engine(engine.version, engine.load),
    unsupported=rules.unsupported,
    activation_bits=rules.activation_bits,
    prepare=rules.prepare,
    place_qdq=rules.place_qdq,
    fit_to_biases=biases.fit_to_biases,
    check=check.check,
    copied=rules.copied,
    zero_points=lambda activation_bits: True,
)
