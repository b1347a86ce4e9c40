"""Let a CUDA build of torchvision import beside a CPU build of torch.

Role: `requirements/setup_env.py` copies this file into an environment, with a one-line `.pth` that calls `install()`,
where `import torchvision` fails and only there. Such a torchvision cannot load its compiled library, which would have
declared the operators `torchvision::nms` and `torchvision::qnms`; its Python code then refers to them and raises. The
two schemas, declared beforehand, are all it needs: the operators stay without a kernel, and no engine calls them.

Owns: those declarations, for the life of the process. Must not know: engines, configuration. Standard library only,
and no work until something imports torchvision: the `.pth` runs at the start of every interpreter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_declared: list[Any] = []  # a torch Library takes its schemas back when it is garbage-collected


class TorchvisionFinder:
    """Declares the schemas the first time `torchvision` is looked for, then leaves the import to the usual finders."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            uninstall()  # first: importing torch may itself look for torchvision
            declare()
        return None


def declare() -> None:
    """Declare the two operators once; an environment without torch has nothing to declare them to."""
    if _declared:
        return
    try:
        from torch.library import Library
    except ImportError:
        return
    library = Library("torchvision", "DEF")
    _declared.append(library)
    for operator in OPERATORS:
        library.define(operator + SCHEMA)


def install() -> None:
    """Watch for the import of torchvision. A second call, or one after it is imported, changes nothing."""
    if "torchvision" not in sys.modules and TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)


def uninstall() -> None:
    """Stop watching; what is declared stays."""
    if TorchvisionFinder in sys.meta_path:
        sys.meta_path.remove(TorchvisionFinder)
