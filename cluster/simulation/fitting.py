"""The step model of an engine from a recorded run, by least squares.

A recording says when requests came, when their first token did and when they ended; how many steps lay in between, and
who was in them, only a simulation of the same arrivals tells. So the four parts of the step model are those with which
the simulation's spans come closest to the recorded ones:

    min sum over requests of ((ttft' - ttft) / mean ttft)^2 + ((decode' - decode) / mean decode)^2,   all parts >= 0

found by Levenberg and Marquardt's method with differences for derivatives, each a simulation of some hundredths of a
second. It begins with the guess, and with guesses in which one part is larger, each scaled first until the mean time of
requests is right; the best of the results goes on.

Owns: the fit. Must not know: where recordings come from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from cluster.simulation.engine import Engine
from cluster.simulation.fleet import serve
from cluster.simulation.recording import Recorded
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.request import Request
from cluster.simulation.step_model import PARTS, StepModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS, SCALINGS = 30, 10
LEAST_BASE_S = 1e-6
LARGER = 4.0
DIFFERENCES = (0.3, 0.1, 0.03)
"""Relative changes of a part for its derivative, one search after the other: large ones, since a first token waits for
the end of a step, and such jumps hide the slope."""
ENOUGH = 1e-4
"""A relative improvement below this ends the search."""


@dataclass(frozen=True, slots=True)
class Fit:
    """An engine with its step model, and how far it is from what it was fitted on."""

    engine: Engine
    requests: int
    """Fitted on so many."""
    residual: float
    """Root of the mean square of the spans' errors, over the means of their kinds."""


def predict(recorded: Sequence[Recorded], engine: Engine) -> list[Request]:
    """The same arrivals on a simulated engine."""
    requests = [one.asked(number) for number, one in enumerate(recorded)]
    serve(ReplicaModel(engine), requests)
    return requests


def fit_step_model(recorded: Sequence[Recorded], engine: Engine, on: Collection[int] | None = None) -> Fit:
    """`engine` has the limits of the recorded one; its step model is where the fit begins and may be a rough guess.
    Fitted on the requests at the places `on`, all by default: of the others only arrivals and lengths are used."""
    places = sorted(range(len(recorded)) if on is None else on)
    if len(places) < len(PARTS):
        raise ValueError(f"a fit needs at least {len(PARTS)} requests, got {len(places)}")
    search = _Search(recorded, engine, places)
    found = [search.best(search.scaled(start), DIFFERENCES[0]) for start in _starts(engine.step)]
    parts, residual = min(found, key=lambda item: item[1])
    for difference in DIFFERENCES[1:]:
        parts, residual = search.best(parts, difference)
    return Fit(replace(engine, step=_model(parts)), len(places), residual)


def _starts(guess: StepModel) -> list[StepModel]:
    """Single events make many hills: one beginning is not enough."""
    return [guess, *(replace(guess, **{name: LARGER * getattr(guess, name)}) for name in PARTS)]


class _Search:
    """The spans of the requests at `places`, recorded and simulated."""

    def __init__(self, recorded: Sequence[Recorded], engine: Engine, places: Sequence[int]) -> None:
        import numpy as np

        self._recorded, self._engine, self._places = recorded, engine, places
        first = np.array([recorded[p].first_token_s - recorded[p].arrived_s for p in places])
        rest = np.array([recorded[p].finished_s - recorded[p].first_token_s for p in places])
        self._observed = np.concatenate([first, rest])
        self._weights = np.concatenate([np.full(len(places), 1 / max(kind.mean(), 1e-9)) for kind in (first, rest)])

    def scaled(self, step: StepModel) -> NDArray:
        """The guess, as slow as the recorded engine."""
        parts = _parts(step)
        wanted_s = fmean(self._recorded[p].finished_s - self._recorded[p].arrived_s for p in self._places)
        for _ in range(SCALINGS):
            requests = predict(self._recorded, replace(self._engine, step=_model(parts)))
            # Under load times grow by more than the parts do: smaller changes do not overshoot.
            parts = parts * (wanted_s / fmean(requests[p].e2e_s for p in self._places)) ** 0.7
        return parts

    def best(self, parts: NDArray, difference: float) -> tuple[NDArray, float]:
        """Levenberg and Marquardt: small steps downhill while the model is wrong, Gauss and Newton's when it is not."""
        import numpy as np

        errors, damping = self._errors(parts), 1e-2
        for _ in range(ROUNDS):
            slopes = self._slopes(parts, errors, difference)
            square = slopes.T @ slopes
            before = float(errors @ errors)
            while damping < 1e6:
                # A part that nothing depends on (its column is zero) stays as it is.
                lifted = square + damping * np.diag(np.maximum(np.diag(square), 1e-30))
                tried = np.maximum(parts - np.linalg.solve(lifted, slopes.T @ errors), 0.0)
                found = self._errors(tried)
                if float(found @ found) < before:
                    parts, errors, damping = tried, found, damping / 4
                    break
                damping *= 4
            if float(errors @ errors) > before * (1 - ENOUGH):
                break
        return parts, float((errors @ errors / len(errors)) ** 0.5)

    def _errors(self, parts: NDArray) -> NDArray:
        import numpy as np

        requests = predict(self._recorded, replace(self._engine, step=_model(parts)))
        chosen = [requests[place] for place in self._places]
        spans = [r.ttft_s for r in chosen] + [r.finished_s - r.first_token_s for r in chosen]
        return (np.array(spans) - self._observed) * self._weights

    def _slopes(self, parts: NDArray, errors: NDArray, difference: float) -> NDArray:
        """Change of each error with each part."""
        import numpy as np

        columns = []
        for place, least in enumerate(_LEAST_CHANGES):
            change = max(difference * parts[place], least)
            moved = parts.copy()
            moved[place] += change
            columns.append((self._errors(moved) - errors) / change)
        return np.stack(columns, axis=1)


_LEAST_CHANGES = (1e-4, 1e-6, 1e-6, 1e-9)
"""Of a part that is zero."""


def _parts(step: StepModel) -> NDArray:
    import numpy as np

    return np.array([getattr(step, name) for name in PARTS])


def _model(parts: NDArray) -> StepModel:
    base_s, prefill_s, request_s, kv_s = (float(part) for part in parts)
    return StepModel(max(base_s, LEAST_BASE_S), prefill_s, request_s, kv_s)
