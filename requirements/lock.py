"""Recompile the lock files from the `.in` files: `make lock` (keeps pins that still fit), `make lock UPGRADE=1`.

Owns: the list of locks and how each is resolved. Uses uv from a throw-away environment, told the same index as pip.
Must not know: how environments are built (shared_env.py). The locks name no index and no path of the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.9"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Installed by their own rules (cpu-torch.in) or not at all: the registry's torchaudio and torchcodec link CUDA and
# raise OSError on import, and both engines run without them.
NOT_ON_CPU = ("torch", "torchaudio", "torchcodec")


@dataclass(frozen=True)
class Lock:
    """One `.in` file and how it is resolved."""

    name: str
    platform: str = "x86_64-manylinux_2_28"
    left_out: tuple[str, ...] = ()
    with_dependencies: bool = True

    def command(self, uv: Path, upgrade: bool) -> list[str]:
        command = [str(uv), "pip", "compile", f"requirements/{self.name}.in", "-o", f"requirements/{self.name}.txt"]
        command += ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
        command += ["--python-version", "3.11", "--python-platform", self.platform]
        for package in self.left_out:
            command += ["--no-emit-package", package]
        if not self.with_dependencies:
            command.append("--no-deps")
        if upgrade:
            command.append("--upgrade")
        return command


LOCKS = (
    Lock("cpu", left_out=NOT_ON_CPU),
    Lock("cpu-nodeps", platform="x86_64-manylinux_2_34", with_dependencies=False),
    Lock("dev"),  # constrained by cpu.txt, so after it
    Lock("gpu-vllm"),
    Lock("gpu-sglang", platform="x86_64-manylinux_2_34"),
)


def pip_setting(python: Path, key: str) -> str:
    """A setting of pip on this machine, from its files or environment; empty where it has none."""
    for section in (":env:", "install", "global"):
        found = subprocess.run(
            [python, "-m", "pip", "config", "get", f"{section}.{key}"], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            return found.stdout.strip()
    return ""


def uv_environment(python: Path) -> dict[str, str]:
    """This process's variables, plus pip's index, folders and certificates under uv's names: uv does not read pip's."""
    environment = dict(os.environ)
    for key, name in (("index-url", "UV_DEFAULT_INDEX"), ("find-links", "UV_FIND_LINKS"), ("cert", "SSL_CERT_FILE")):
        value = pip_setting(python, key)
        if value and name not in environment:
            environment[name] = value
    return environment


def compile_lock(lock: Lock, uv: Path, environment: dict[str, str], upgrade: bool) -> None:
    """Resolve one lock; where the configured index lacks the CPU build of torch, once more with PyTorch's own."""
    print(f"lock: {lock.name}.in -> {lock.name}.txt", flush=True)
    command = lock.command(uv, upgrade)
    first = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    if first.returncode != 0 and "torch" in lock.left_out and "torch" in first.stderr:
        command += ["--index", PYTORCH_CPU_INDEX, "--index-strategy", "unsafe-best-match"]
        first = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    if first.returncode != 0:
        raise SystemExit(f"lock: {lock.name}.in cannot be resolved:\n{first.stderr.strip()}")
    path = HERE / f"{lock.name}.txt"
    body = path.read_text()
    head = f"# Compiled from {lock.name}.in by `make lock`; edit that file, not this one.\n"
    path.write_text(head + body.removeprefix(head))


def main() -> None:
    parser = argparse.ArgumentParser(description="Recompile the lock files.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit, not the pins so far")
    parser.add_argument("names", nargs="*", help=f"which locks (default all): {', '.join(lock.name for lock in LOCKS)}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {lock.name for lock in LOCKS}
    if unknown:
        parser.error(f"no such lock: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="tribes-lock-") as folder:
        venv.create(folder, with_pip=True)
        binaries = Path(folder) / "bin"
        subprocess.run([binaries / "python", "-m", "pip", "install", "--quiet", UV], check=True)
        environment = uv_environment(binaries / "python")
        for lock in LOCKS:
            if not arguments.names or lock.name in arguments.names:
                compile_lock(lock, binaries / "uv", environment, arguments.upgrade)


if __name__ == "__main__":
    main()
