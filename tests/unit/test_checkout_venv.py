"""The checkout's thin `.venv` over a shared environment: imports, scripts, child processes, and when it is remade."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "requirements"))

import checkout_venv
import shared_env


def run(*command: str | Path) -> str:
    """Its output; from a folder with nothing to import, since `python -c` puts the current one on the path."""
    done = subprocess.run([str(part) for part in command], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A shared environment with a package, a `.pth` of its own, scripts of both forms, a program and a library."""
    environment = tmp_path / "shared env"
    venv.create(environment, with_pip=False, symlinks=True)
    packages = shared_env.site_packages(environment)
    (packages / "shared_package.py").write_text("VALUE = 42\n")
    (packages / "tests").mkdir()
    (packages / "tests" / "__init__.py").write_text("WHOSE = 'a package'\n")
    (packages / "nested.pth").write_text("import sys; sys.shared_pth_was_read = True\n")
    interpreter = shared_env.interpreter(environment)
    body = "import sys, shared_package\nprint(sys.executable, shared_package.VALUE, *sys.argv[1:])\n"
    write_program(environment / "bin" / "short", f"#!{interpreter}\n{body}")
    write_program(environment / "bin" / "long", f"#!/bin/sh\n'''exec' \"{interpreter}\" \"$0\" \"$@\"\n' '''\n{body}")
    (environment / "bin" / "compiled").symlink_to("/bin/true")
    (environment / "lib" / "libiomp5.so").write_text("a library")
    (environment / "share").mkdir()
    return environment


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "cli.py").write_text("import sys\n\ndef main():\n    print('cli', *sys.argv[1:])\n")
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").write_text("WHOSE = 'the checkout'\n")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "tribes"\nversion = "1.2.3"\nscripts = {tribes = "cluster.cli:main"}\n'
    )
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_venv_has_the_checkout_and_the_shared_packages(checkout: Path, shared: Path) -> None:
    assert checkout_venv.ensure(checkout, shared, ".venv")
    binaries = checkout / ".venv" / "bin"
    code = (
        "import importlib.metadata, subprocess, sys, shared_package, cluster.cli, tests;"
        "print(sys.shared_pth_was_read, tests.WHOSE, importlib.metadata.version('tribes'), flush=True);"
        "subprocess.run([sys.executable, '-c', 'import shared_package, cluster.cli; print(shared_package.VALUE)'])"
    )
    assert run(binaries / "python", "-c", code).splitlines() == ["True the checkout 1.2.3", "42"]
    for script in ("short", "long"):
        assert run(binaries / script, "two words") == f"{binaries / 'python'} 42 two words"
    assert run(binaries / "tribes", "up") == "cli up"
    run(binaries / "compiled")
    assert (checkout / ".venv" / "lib" / "libiomp5.so").read_text() == "a library"
    assert (checkout / ".venv" / "share").is_dir()


def test_venv_is_made_anew_only_when_something_changed(checkout: Path, shared: Path, tmp_path: Path) -> None:
    assert checkout_venv.ensure(checkout, shared, ".venv")
    assert not checkout_venv.ensure(checkout, shared, ".venv")
    (checkout / ".venv" / checkout_venv.STAMP).unlink()
    assert checkout_venv.ensure(checkout, shared, ".venv")
    moved = checkout.rename(tmp_path / "moved")
    assert checkout_venv.ensure(moved, shared, ".venv")
    assert run(moved / ".venv" / "bin" / "tribes") == "cli"
    (moved / "pyproject.toml").write_text((moved / "pyproject.toml").read_text().replace("1.2.3", "1.2.4"))
    assert checkout_venv.ensure(moved, shared, ".venv")


def test_a_link_in_the_place_of_the_venv_is_replaced_not_followed(checkout: Path, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("")
    (checkout / ".venv").symlink_to(tmp_path / "elsewhere")
    assert checkout_venv.ensure(checkout, shared, ".venv")
    assert (tmp_path / "elsewhere" / "precious").exists()
