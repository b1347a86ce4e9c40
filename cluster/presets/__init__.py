"""Presets: named sets of levers for a goal and an accelerator, and what each lever is in the words of each engine.

Role: from `engine.preset` of a deployment to engine arguments, with the reason for each. Owns: the levers, where they
work and what they cost. Must not know: configuration files, engine processes, Ray. A preset is a starting point and no
mirror of the engines' schemas: `engine.args` pass through beside it, and win.
"""

from cluster.presets.lever import Args, Lever
from cluster.presets.named import PRESETS, Preset
from cluster.presets.resolve import LEVERS, LeverArgument, cautions, chosen, lever_arguments, merged, obstacles, silent
from cluster.presets.shape import Levers, PresetConfig, PresetOption
from cluster.presets.target import Engine, Generation, Target, generation_of

__all__ = [
    "LEVERS",
    "PRESETS",
    "Args",
    "Engine",
    "Generation",
    "Lever",
    "LeverArgument",
    "Levers",
    "Preset",
    "PresetConfig",
    "PresetOption",
    "Target",
    "cautions",
    "chosen",
    "generation_of",
    "lever_arguments",
    "merged",
    "obstacles",
    "silent",
]
