"""Role: from differences to figures and a verdict. Owns: the means, their intervals, what counts as lost quality.

Must not know: how answers are compared. Intervals are bootstraps over prompts: the same set drawn again with
replacement, 95 % of whose means lie between the two bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from cluster.quality.differences import Difference, Unit

Method = Literal["rescored", "top_k_kl", "none"]
RESAMPLES: Final = 2000
_SEED: Final = 0
"""Fixed, so that the same answers give the same report."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a deployment may differ by. Conventions, not laws: compare a model with itself to see your noise."""

    min_exact_match: float = 0.5
    min_token_agreement: float = 0.8
    max_logprob_divergence: float = 0.1


@dataclass(frozen=True, slots=True)
class Summary:
    """All prompts."""

    prompts: int
    unit: Unit
    exact_match: Estimate
    token_agreement: Estimate
    diverged: int
    first_divergence_median: float | None
    """Position, over the prompts whose answers differ."""
    method: Method
    """How log-probabilities were compared; see differences.py."""
    logprob_divergence: Estimate | None

    def missed(self, thresholds: Thresholds) -> list[str]:
        """Every threshold that the means do not keep; empty = the quality holds."""
        found = []
        if self.exact_match.mean < thresholds.min_exact_match:
            found.append(f"exact match {self.exact_match.mean:.3f} is below {thresholds.min_exact_match:g}")
        if self.token_agreement.mean < thresholds.min_token_agreement:
            found.append(
                f"{self.unit} agreement {self.token_agreement.mean:.3f} is below {thresholds.min_token_agreement:g}"
            )
        divergence, limit = self.logprob_divergence, thresholds.max_logprob_divergence
        if divergence is not None and divergence.mean > limit:
            found.append(f"log-prob divergence {divergence.mean:.4f} is above {limit:g}")
        return found


def summarise(differences: Sequence[Difference]) -> Summary:
    """Of at least one prompt."""
    method = _method(differences)
    by_method = {"rescored": [d.rescored for d in differences], "top_k_kl": [d.top_k_kl for d in differences]}
    divergences = [value for value in by_method.get(method, []) if value is not None]
    positions = [d.diverges_at for d in differences if d.diverges_at is not None]
    return Summary(
        prompts=len(differences),
        unit="word" if any(d.unit == "word" for d in differences) else "token",
        exact_match=estimate([float(d.exact) for d in differences]),
        token_agreement=estimate([d.agreement for d in differences]),
        diverged=len(positions),
        first_divergence_median=median(positions) if positions else None,
        method=method,
        logprob_divergence=estimate(divergences) if divergences else None,
    )


def estimate(values: Sequence[float]) -> Estimate:
    """The mean, and the interval of the means of sets drawn from the same values."""
    import numpy as np

    given = np.asarray(values, dtype=float)
    draws = np.random.default_rng(_SEED).integers(0, len(given), size=(RESAMPLES, len(given)))
    low, high = np.percentile(given[draws].mean(axis=1), [2.5, 97.5])
    return Estimate(float(given.mean()), float(low), float(high))


def _method(differences: Sequence[Difference]) -> Method:
    """One for all prompts, since the two are different numbers."""
    if all(d.rescored is not None for d in differences):
        return "rescored"
    return "top_k_kl" if any(d.top_k_kl is not None for d in differences) else "none"
