"""Build one set of locked packages into an environment under the user's cache, shared by every checkout.

Owns: the cache folder, its file lock, and what a complete environment is: a folder with a stamp, written last. A folder
without one is half-built (a virtual environment cannot be moved, so it is built where it stays) and is built anew.
Must not know: checkouts (checkout_venv.py). Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pip_run

HERE = Path(__file__).resolve().parent
SHIM = HERE.parent / "cluster" / "engines" / "torchvision_shim.py"
SHIM_MODULE = "_tribes_torchvision_shim"
STAMP = "tribes-complete"
# Asked only where the configured index lacks the CPU build of torch.
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GIB = 1024**3


class SetupError(Exception):
    """The environment cannot be made; the message says what to do about it."""


@dataclass(frozen=True)
class PackageSet:
    """What one environment holds: complete, hashed locks, and the requirement that comes unhashed before them."""

    name: str
    locks: tuple[str, ...]
    unlocked: str | None = None
    imports: tuple[str, ...] = ()
    disk_gib: float = 6.0


# What the processes of each kind import at their start.
VLLM = "vllm.entrypoints.openai.api_server, vllm.v1.engine.async_llm, transformers.models.llama.modeling_llama"
SGLANG = "sglang.srt.entrypoints.http_server, sglang.launch_server"
SERVICE = "ray.serve, ray.data, ray.dashboard.dashboard, sqlalchemy.orm, openai, typer, rich"

PACKAGE_SETS = {
    "cpu": PackageSet(
        "cpu", ("cpu.txt", "cpu-nodeps.txt", "dev.txt"), unlocked="cpu-torch.in", imports=(VLLM, SGLANG, SERVICE)
    ),
    "gpu-vllm": PackageSet("gpu-vllm", ("gpu-vllm.txt",), imports=(VLLM, SERVICE), disk_gib=16.0),
    "gpu-sglang": PackageSet("gpu-sglang", ("gpu-sglang.txt",), imports=(SGLANG, SERVICE), disk_gib=16.0),
}


def say(message: str) -> None:
    print(f"env: {message}", flush=True)


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tribes" / "env"


def environment_path(packages: PackageSet) -> Path:
    """The folder of this set under this interpreter: anything that would change its contents changes its name."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.python_version()} {sys.base_prefix}".encode())
    files = [HERE / name for name in (*packages.locks, packages.unlocked) if name]
    for path in (*files, SHIM, Path(__file__)):
        digest.update(path.read_bytes())
    return cache_root() / f"{packages.name}-{digest.hexdigest()[:16]}"


def interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def site_packages(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def is_complete(environment: Path) -> bool:
    return (environment / STAMP).is_file() and interpreter(environment).exists()


def ensure(packages: PackageSet) -> Path:
    """The complete environment of `packages`: found, waited for while another builds it, or built now."""
    environment = environment_path(packages)
    if is_complete(environment):
        return environment
    with build_lock(environment) as lock_fd:
        if not is_complete(environment):
            Build(packages, environment, lock_fd).run()
    return environment


@contextlib.contextmanager
def build_lock(environment: Path) -> Iterator[int]:
    """One builder at a time; the kernel releases it when the last process that holds its descriptor is gone."""
    try:
        environment.parent.mkdir(parents=True, exist_ok=True)
        handle = (environment.parent / f".{environment.name}.lock").open("w")
    except OSError as error:
        raise SetupError(
            f"cannot write to the cache {environment.parent} ({error.strerror}). Make it writable, or name another "
            "folder: XDG_CACHE_HOME=/some/folder make env"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building this environment; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


@dataclass(frozen=True)
class Build:
    """One build, under the lock. Its children inherit the lock, so that a killed build's pip is waited for as well."""

    packages: PackageSet
    environment: Path
    lock_fd: int

    def run(self) -> None:
        started_s = time.monotonic()
        check_machine(self.packages, self.environment.parent)
        if self.environment.exists():
            say("removing a half-built environment")
            shutil.rmtree(self.environment)
        say(f"building {self.environment} (once for these locks; takes some minutes)")
        step("creating a virtual environment", lambda: venv.create(self.environment, with_pip=True))
        if self.packages.unlocked:
            step("installing torch", self.install_unlocked)
        step("installing the locked packages", self.install_locks)
        step("checking torchvision", self.mend_torchvision)
        step("importing everything once", self.first_imports)
        (self.environment / STAMP).write_text(f"{self.packages.name}\n")
        say(f"built in {time.monotonic() - started_s:.0f} s")

    def pip_install(self, *arguments: str) -> bool:
        """Without bytecode: first_imports makes that which is needed, and compiling the rest takes a minute or two."""
        command = [str(interpreter(self.environment)), "-m", "pip", "install", "--no-deps", "--no-compile"]
        return pip_run.run([*command, "--disable-pip-version-check", *arguments], self.lock_fd)

    def install_unlocked(self) -> None:
        requirements = str(HERE / str(self.packages.unlocked))
        if self.pip_install("-r", requirements):
            return
        say("the configured package index has no CPU build of torch; trying PyTorch's own")
        if not self.pip_install("--index-url", PYTORCH_CPU_INDEX, "-r", requirements):
            raise SetupError(
                f"torch could not be installed (pip's message is above). Check the network, or download the wheel that "
                f"requirements/{self.packages.unlocked} names and point pip at its folder: "
                "PIP_FIND_LINKS=/some/folder make env"
            )

    def install_locks(self) -> None:
        locks = [argument for name in self.packages.locks for argument in ("-r", str(HERE / name))]
        if not self.pip_install("--require-hashes", *locks):
            raise SetupError(
                "the locked packages could not be installed (pip's message is above). No network or index: check "
                "`pip config list` and the connection. A hash that does not match: the index serves another file than "
                "the locks name; use one that mirrors PyPI unchanged. No space: XDG_CACHE_HOME=/some/folder make env"
            )

    def import_failure(self, modules: str) -> str | None:
        """The last line of the error of importing `modules` there; None where they import."""
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        tried = subprocess.run(
            [str(interpreter(self.environment)), "-c", f"import {modules}"],
            env=variables,
            stdin=subprocess.DEVNULL,
            pass_fds=(self.lock_fd,),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if tried.returncode == 0:
            return None
        return (tried.stderr.strip().splitlines() or [f"exit status {tried.returncode}"])[-1]

    def mend_torchvision(self) -> None:
        """Install the shim where torchvision is built for another torch, and nothing where it imports as it is."""
        failure = self.import_failure("torchvision")
        if failure is None:
            return
        say(f"import torchvision fails ({failure}); installing cluster/engines/torchvision_shim.py")
        folder = site_packages(self.environment)
        shutil.copyfile(SHIM, folder / f"{SHIM_MODULE}.py")
        (folder / f"{SHIM_MODULE}.pth").write_text(f"import {SHIM_MODULE}; {SHIM_MODULE}.install()\n")
        failure = self.import_failure("torchvision")
        if failure is not None:
            raise SetupError(
                f"torchvision cannot be imported even with the shim: {failure}. Set a version of it that is built for "
                "this torch in requirements/cpu.in and run `make lock`."
            )

    def first_imports(self) -> None:
        """Import what engines and Ray's processes import: a check, and it leaves their bytecode for every later start.

        A failure is only told: GPU engines may refuse to load on the machine without a GPU that prepares a node's disk.
        """
        with ThreadPoolExecutor() as pool:
            for modules, failure in zip(
                self.packages.imports, pool.map(self.import_failure, self.packages.imports), strict=True
            ):
                if failure is not None:
                    say(f"warning: `import {modules}` fails on this machine: {failure}")


def step(what: str, work: Callable[[], None]) -> None:
    say(f"{what} ...")
    started_s = time.monotonic()
    work()
    say(f"{what}: {time.monotonic() - started_s:.0f} s")


def check_machine(packages: PackageSet, folder: Path) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(
            f"the locks are for Linux on x86-64 and this is {sys.platform} on {platform.machine()}. Use such a machine "
            "or container, or change the platforms in requirements/lock.py and run `make lock`."
        )
    if sys.version_info[:2] != (3, 11):
        raise SetupError(
            f"the locks are for Python 3.11 and this is {platform.python_version()}. Name one: "
            "make env PYTHON=/path/to/python3.11"
        )
    free_gib = shutil.disk_usage(folder).free / GIB
    if free_gib < packages.disk_gib:
        raise SetupError(
            f"{folder} has {free_gib:.1f} GiB free and the {packages.name} environment needs {packages.disk_gib:.0f}. "
            "Free some (`make prune-env` removes environments of older locks), or use another disk: "
            "XDG_CACHE_HOME=/some/folder make env"
        )
