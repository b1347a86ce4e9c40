"""Simulation of engines, replicas and whole clusters, with the policies that run live.

Owns: the model of an engine and the clock. Must not know: Ray, HTTP, the wall clock; and how a policy decides.
"""

from cluster.simulation.engine import ENGINES, Engine
from cluster.simulation.replica import ReplicaModel
from cluster.simulation.request import Request
from cluster.simulation.step_model import StepModel

__all__ = ["ENGINES", "Engine", "ReplicaModel", "Request", "StepModel"]
