"""SPDY's search around the dynamic program: which layers' losses count more, judged on whole models.

A sum of losses of single layers ignores how they act together. SPDY (Frantar and Alistarh 2022, section 3.3) multiplies
each layer's losses by a coefficient, and looks for the coefficients whose profile is best when the whole model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..core.arrays import Float64

RANDOM, PATIENCE = 100, 100  # draws at first, and tries in vain before fewer coefficients are changed


def spdy_search(
    losses: Sequence[Float64],
    solve: Callable[[Sequence[Float64]], tuple[int, ...]],
    evaluate: Callable[[tuple[int, ...]], float],
    seed: int = 0,
    random: int = RANDOM,
    patience: int = PATIENCE,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[tuple[int, ...], float]:
    """The best profile that was met, and what `evaluate` says of it: never worse than that of `solve`.

    losses: for each layer (choices,). solve: the best profile for such losses, as `choose` finds it. evaluate: the
    loss of a whole profile; asked once for each. After `random` draws of all coefficients from [0, 1], the first of
    which is 1 throughout, a tenth of them are drawn anew around the best, then fewer, each as long as one of `patience`
    tries in a row helps. progress: called with 1 for every try.
    """
    rng = np.random.default_rng(seed)
    known: dict[tuple[int, ...], float] = {}

    def judge(coefficients: Float64) -> tuple[tuple[int, ...], float]:
        picked = solve([c * loss for c, loss in zip(coefficients, losses, strict=True)])
        if picked not in known:
            known[picked] = evaluate(picked)
        progress(1)
        return picked, known[picked]

    count = len(losses)
    best = np.ones(count)
    profile, least = judge(best)
    for _ in range(random - 1):
        trial = rng.uniform(0, 1, count)
        found, loss = judge(trial)
        if loss < least:
            best, profile, least = trial, found, loss
    for changed in range(max(1, count // 10), 0, -1):
        failures = 0
        while failures < patience:
            trial = best.copy()
            trial[rng.integers(0, count, changed)] = rng.uniform(0, 1, changed)
            found, loss = judge(trial)
            failures += 1
            if loss < least:
                best, profile, least, failures = trial, found, loss, 0
    return profile, least
