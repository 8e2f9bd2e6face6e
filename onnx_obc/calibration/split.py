"""Which samples calibrate, which are held out to compare outputs, and how many serve to run whole models."""

from __future__ import annotations

from typing import Any

from .samples import Samples

HELD_OUT = 256  # the last tenth of the samples, but at most so many, only serve to compare the outputs
STORED = 512  # calibration samples that a database keeps, at most
TRAINING = 512  # samples of global AdaPrune, at most
LEARNING = 1024  # samples that learned rounding looks at, at most
CORRECTING = 96  # samples that corrections of statistics look at, at most
ENOUGH = 32  # samples held out that judge corrections alone: few make up a divergence, and with fewer,
JUDGING = 32  # at most so many others, that the corrections did not look at, judge too


def split(samples: Samples) -> tuple[Samples, Samples]:
    """The samples to calibrate on and those held out of it; with too few to spare any, the same ones serve as both."""
    spare = min(max(samples.count // 10, samples.step), HELD_OUT)
    spare -= spare % samples.step
    if spare == 0 or spare >= samples.count:
        return samples, samples
    return samples.part(0, samples.count - spare), samples.part(samples.count - spare, samples.count)


def first_samples(samples: Samples, most: int) -> Samples:
    """The first of the samples, at most so many but no less than one feed; whole feeds where it must be."""
    count = 0
    for batch in samples.read(0, samples.count):
        if count and count + batch.count > most:
            break
        count += batch.count
    return samples.part(0, count)


def describe(samples: Samples, calibrating: Samples, held_out: Samples) -> tuple[dict[str, Any], list[str]]:
    """What a report says of the data, and its notes. Raises CalibrationError for values that cannot be used."""
    apart = held_out is not samples
    notes = [*samples.notes, *samples.notes_on_values()]
    if samples.synthetic:
        notes.append("calibrated on random numbers: the weights fit noise, not your data; do not ship this model")
    if not apart:
        notes.append("too few samples to hold any out: outputs were compared on the calibration samples themselves")
    about = {
        "source": samples.source,
        "synthetic": samples.synthetic,
        "samples": calibrating.count,
        "held_out": held_out.count if apart else 0,
    }
    return about, notes
