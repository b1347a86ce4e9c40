"""Role: one spelling for an option's name. Owns: that dashes and underscores are one. Must not know: any option."""

from __future__ import annotations


def option_name(name: str) -> str:
    """`max_model_len` and `max-model-len` are one option; below a dot (`a-b.c_d`) the engine's own spelling stays."""
    head, dot, tail = name.strip().lstrip("-").partition(".")
    return head.replace("_", "-") + dot + tail
