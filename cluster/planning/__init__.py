"""Planning: which hardware a model needs for its work, and what that costs.

Role: from a workload and prices to a plan, offline and before anything runs. Owns: sizes of models, the performance
model, calibrations, the search, the file that `tribes up` takes. Must not know: Ray, engine processes, screens.
"""

from cluster.planning.calibration import Calibration, calibrations_folder
from cluster.planning.facts import ModelFacts, ModelFactsError, facts_from_config
from cluster.planning.planner import plan
from cluster.planning.results import Candidate, ClassPlan, Plan
from cluster.planning.shape import Shape
from cluster.planning.workload import PlanRequest, completed, load_request

__all__ = [
    "Calibration",
    "Candidate",
    "ClassPlan",
    "ModelFacts",
    "ModelFactsError",
    "Plan",
    "PlanRequest",
    "Shape",
    "calibrations_folder",
    "completed",
    "facts_from_config",
    "load_request",
    "plan",
]
