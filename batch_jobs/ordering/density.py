"""How compute-bound or memory-bound a row is.

Role: the cost model of ordering. Owns: the formulas below. Must not know: prefixes, windows, engines.

BlendServe (ASPLOS'26, arXiv 2411.16102): density rho = compute time / memory time of a request, with p prompt tokens
that have to be computed (not found in the KV cache) and d output tokens:

    compute time ~ (p + d)              every token passes through the weights once
    memory time  ~ (p * d + d * d / 2)  every output token reads the KV of all tokens before it

The factors in front (parameters / FLOPs, KV bytes / bandwidth) are the same for all rows of a job. Here densities are
only compared with each other, so they are left out.
"""

from __future__ import annotations

import math

CLASSES_PER_OCTAVE = 4
"""Densities closer than 2 ** (1 / 4) count as equal: finer differences are below the error of the estimates, and rows
that count as equal keep the order of the input."""


def compute_work(uncached_tokens: float, output_tokens: float) -> float:
    """Compute time of a row, up to a constant; never 0."""
    return max(1.0, uncached_tokens + output_tokens)


def memory_work(input_tokens: float, output_tokens: float) -> float:
    """Memory time of a row, up to a constant. A row without output (embedding, score) reads its KV within one forward
    pass, which is compute-bound whatever its length: the floor of 1 makes its density large and keeps it finite."""
    return max(1.0, (input_tokens + output_tokens / 2) * output_tokens)


def density(input_tokens: float, output_tokens: float) -> float:
    """rho of one row of which nothing is cached."""
    return compute_work(input_tokens, output_tokens) / memory_work(input_tokens, output_tokens)


def density_class(compute: float, memory: float) -> int:
    """The rank of sums of work, ascending with rho.

    A set of rows is judged by the ratio of its sums, which is the mean of its rhos weighted by memory time and what an
    engine that runs the set sees. (In the plain mean one row with a single output token would outvote a hundred.)
    """
    return math.floor(math.log2(compute / memory) * CLASSES_PER_OCTAVE)
