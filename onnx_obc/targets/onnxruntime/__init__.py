"""onnxruntime on a CPU."""

from functools import partial

from ..engine import Engine
from ..target import Target
from . import biases, check, engine, few_bits, rules
from .lowering import lower

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
    one_reader=rules.one_reader,
    tables_in_blocks=True,
    dynamic=True,
    not_dynamic=rules.not_dynamic,
    weight_forms={
        "dq": lower,
        "nbits-0": partial(few_bits.as_few_bits, accuracy_level=0),
        "nbits-1": partial(few_bits.as_few_bits, accuracy_level=1),
        "nbits-4": partial(few_bits.as_few_bits, accuracy_level=4),
    },
    zero_points=lambda activation_bits: True,
    half_integers=False,
)
