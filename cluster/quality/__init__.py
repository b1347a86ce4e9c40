"""How far the answers of one model are from another's: a quantised deployment and its base.

Role: from pairs of answers to figures and a verdict. Owns: what the figures mean. Must not know: HTTP, the gateway, the
screen. Pure, but for reading a file of prompts.
"""

from cluster.quality.answers import Answer, UnreadableAnswer, echoed_logprobs, read_answer
from cluster.quality.differences import Difference, difference
from cluster.quality.prompts import BUILT_IN, Prompt, PromptError, read_prompts
from cluster.quality.summary import Estimate, Summary, Thresholds, summarise

__all__ = [
    "BUILT_IN",
    "Answer",
    "Difference",
    "Estimate",
    "Prompt",
    "PromptError",
    "Summary",
    "Thresholds",
    "UnreadableAnswer",
    "difference",
    "echoed_logprobs",
    "read_answer",
    "read_prompts",
    "summarise",
]
