"""The torchvision shim: it acts on that one name, once, and is harmless without torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest

from cluster.engines import torchvision_shim


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the shim declares, with a stand-in for torch."""
    schemas: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "DEF")

        def define(self, schema: str) -> None:
            schemas.append(schema)

    library = types.ModuleType("torch.library")
    library.Library = Library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch.library", library)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torchvision_shim, "_declared", [])
    yield schemas
    torchvision_shim.uninstall()


def test_shim_declares_once_when_torchvision_is_looked_for(declared: list[str]) -> None:
    torchvision_shim.install()
    torchvision_shim.install()
    assert sys.meta_path.count(torchvision_shim.TorchvisionFinder) == 1
    find = torchvision_shim.TorchvisionFinder.find_spec
    assert find("torchaudio") is None and declared == []
    assert find("torchvision") is None
    assert torchvision_shim.TorchvisionFinder not in sys.meta_path
    find("torchvision")
    assert [schema.partition("(")[0] for schema in declared] == ["nms", "qnms"]


def test_shim_without_torch(declared: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.library", None)
    torchvision_shim.declare()
    assert declared == []
