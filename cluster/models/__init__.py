"""Role: turns the `models` section of the configuration into something an engine can load.

Owns: the cache of converted and downloaded models (`paths.models`). Must not know: engines, deployments, Ray.
"""

from __future__ import annotations

from cluster.models.prepare import PreparedModel, prepare_model
from cluster.models.ready_folder import ModelError

__all__ = ["ModelError", "PreparedModel", "prepare_model"]
