"""Owns: the error of this package. Must not know: anything else."""

from __future__ import annotations


class LocalClusterError(RuntimeError):
    """The local cluster cannot be started, reached or stopped; the message names the cure."""
