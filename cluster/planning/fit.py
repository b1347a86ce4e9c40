"""Role: from measured steps to the constants of a step model. Owns: the least squares. Must not know: how one measures.

Every sample is divided by its own time first, so that a short step counts as much as a long one. Constants below zero
mean nothing: the worst of them is taken out and the rest fitted again (at most once for each column).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.simulation.step_model import StepModel

_TINY_S: Final = 1e-9


class FitError(ValueError):
    """The samples do not determine a step model; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What took how long: a step of running answers, or everything until a first token."""

    seconds: float
    prefill_tokens: float
    sequences: float
    kv_tokens: float
    first_token: bool = False
    """Then the fixed time of a request is in it, too."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants, and how well they tell the samples they were made from."""

    step: StepModel
    request_s: float
    mean_error: float
    """Mean of |predicted - measured| / measured."""
    worst_error: float


def fit(samples: Sequence[Sample]) -> Fit:
    """Raises FitError where the samples are too few or too much alike."""
    import numpy as np

    if len({s.prefill_tokens for s in samples if s.first_token}) < 2:
        raise FitError("first tokens after prompts of two lengths at least are needed")
    steps = [s for s in samples if not s.first_token]
    if len({s.sequences for s in steps}) < 2 or len({s.kv_tokens for s in steps}) < 3:
        raise FitError("steps with two numbers of sequences and three sizes of the cache at least are needed")
    columns = np.array([[1.0, s.prefill_tokens, s.sequences, s.kv_tokens, float(s.first_token)] for s in samples])
    seconds = np.array([max(s.seconds, _TINY_S) for s in samples])
    scaled = columns / seconds[:, None]
    kept = list(range(columns.shape[1]))
    found = np.zeros(columns.shape[1])
    while kept:
        # Columns differ by orders of magnitude (1 against thousands of tokens): bring them to one size.
        size = np.linalg.norm(scaled[:, kept], axis=0)
        part = np.linalg.lstsq(scaled[:, kept] / size, np.ones(len(samples)), rcond=None)[0] / size
        if (part >= 0).all():
            found[kept] = part
            break
        kept.pop(int(np.argmin(part * size)))
    errors = np.abs(columns @ found - seconds) / seconds
    base, prefill, sequence, kv, request = (float(value) for value in found)
    if base + sequence + kv <= 0:
        raise FitError("the measured times do not grow with anything; measure again on a quiet machine")
    return Fit(StepModel(base, prefill, sequence, kv), request, float(errors.mean()), float(errors.max()))
