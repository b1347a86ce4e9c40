"""Set up the environment of this checkout: `make env`.

`python3.11 requirements/setup_env.py [cpu|gpu-vllm|gpu-sglang]` builds the locked packages once into the user's cache
(shared_env.py) and a thin virtual environment over them in the checkout (checkout_venv.py): `.venv` for `cpu`,
`.venv-gpu-vllm` and `.venv-gpu-sglang` for interpreters that a deployment's `engine.python` names.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever interpreter make was given
    raise SystemExit("env: Python 3.11 or newer is needed: install python3.11, or make env PYTHON=/path/to/python3.11")

import checkout_venv
import shared_env

CHECKOUT = Path(__file__).resolve().parent.parent


def set_up(packages: shared_env.PackageSet) -> None:
    started_s = time.monotonic()
    shared = shared_env.ensure(packages)
    name = ".venv" if packages.name == "cpu" else f".venv-{packages.name}"
    if checkout_venv.ensure(CHECKOUT, shared, name):
        shared_env.say(f"{name} is ready ({time.monotonic() - started_s:.1f} s)")


def prune() -> None:
    """Remove cached environments that are not of this checkout's locks, half-built ones too."""
    current = {shared_env.environment_path(packages) for packages in shared_env.PACKAGE_SETS.values()}
    root = shared_env.cache_root()
    for entry in sorted(root.iterdir()) if root.is_dir() else []:
        if entry.is_dir() and entry not in current:
            shared_env.say(f"removing {entry}")
            with shared_env.build_lock(entry):
                shutil.rmtree(entry)


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up the environment of this checkout.")
    parser.add_argument("packages", nargs="?", default="cpu", choices=sorted(shared_env.PACKAGE_SETS))
    parser.add_argument("--prune", action="store_true", help="remove cached environments of other locks instead")
    arguments = parser.parse_args()
    try:
        prune() if arguments.prune else set_up(shared_env.PACKAGE_SETS[arguments.packages])
    except shared_env.SetupError as error:
        raise SystemExit(f"env: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("env: interrupted; `make env` starts the unfinished environment anew") from None


if __name__ == "__main__":
    main()
