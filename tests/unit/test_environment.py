"""The set-up of the environment: packages shared by all checkouts, and what is committed for it (locks, scripts)."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
sys.path.insert(0, str(REQUIREMENTS))

import pip_run  # noqa: E402
import shared_env  # noqa: E402

LOCKED = ("cpu", "cpu-nodeps", "dev", "gpu-vllm", "gpu-sglang")
TINY = shared_env.PackageSet("tiny", ("cpu-nodeps.txt",), unlocked="cpu-torch.in", disk_gib=0)


def run(*command: str | Path) -> str:
    """Its output; from a folder with nothing to import, since `python -c` puts the current one on the path."""
    done = subprocess.run([str(part) for part in command], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Builds that install nothing and take a moment; the list has the folder of each."""
    builds: list[Path] = []

    def create(folder: Path, with_pip: bool) -> None:
        assert with_pip and not folder.exists()
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        builds.append(folder)
        time.sleep(0.2)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shared_env.venv, "create", create)
    for name in ("install_unlocked", "install_locks", "mend_torchvision", "first_imports"):
        monkeypatch.setattr(shared_env.Build, name, lambda build: None)
    return builds


def test_concurrent_set_ups_build_once(built: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    threads = [threading.Thread(target=shared_env.ensure, args=(TINY,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [shared_env.environment_path(TINY)]
    assert shared_env.is_complete(built[0])
    assert "another process is building this environment" in capsys.readouterr().out


def test_half_built_is_built_anew(built: list[Path]) -> None:
    environment = shared_env.environment_path(TINY)
    environment.mkdir(parents=True)
    (environment / "left-over").write_text("")
    assert shared_env.ensure(TINY) == environment
    assert not (environment / "left-over").exists()


def test_complete_but_its_interpreter_is_gone(built: list[Path]) -> None:
    environment = shared_env.ensure(TINY)
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to("/nowhere/python3.11")
    shared_env.ensure(TINY)
    assert len(built) == 2


def test_a_killed_builds_child_keeps_the_lock(tmp_path: Path) -> None:
    """Or the next build would remove files under a pip that still writes them."""
    environment = tmp_path / "env"
    with shared_env.build_lock(environment) as lock_fd:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock_fd,))
    with (tmp_path / ".env.lock").open() as handle:
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.communicate(b"")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_other_locks_are_another_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cpu-nodeps.txt", "cpu-torch.in"):
        (tmp_path / name).write_text((REQUIREMENTS / name).read_text())
    monkeypatch.setattr(shared_env, "HERE", tmp_path)
    before = shared_env.environment_path(TINY)
    (tmp_path / "cpu-nodeps.txt").write_text("sglang==0\n")
    assert shared_env.environment_path(TINY) != before


@pytest.mark.parametrize("found_on_index", [True, False])
def test_torch_falls_back_to_pytorchs_index(monkeypatch: pytest.MonkeyPatch, found_on_index: bool) -> None:
    calls: list[tuple[str, ...]] = []

    def pip_install(build: object, *arguments: str) -> bool:
        calls.append(arguments)
        return found_on_index or "--index-url" in arguments

    monkeypatch.setattr(shared_env.Build, "pip_install", pip_install)
    shared_env.Build(TINY, Path("/env"), 0).install_unlocked()
    assert ["--index-url" in call for call in calls] == ([False] if found_on_index else [False, True])


@pytest.mark.parametrize(
    ("step", "cure"), [("install_unlocked", "PIP_FIND_LINKS"), ("install_locks", "pip config list")]
)
def test_a_failed_installation_names_the_cure(monkeypatch: pytest.MonkeyPatch, step: str, cure: str) -> None:
    monkeypatch.setattr(shared_env.Build, "pip_install", lambda build, *arguments: False)
    with pytest.raises(shared_env.SetupError, match=cure):
        getattr(shared_env.Build(TINY, Path("/env"), 0), step)()


@pytest.mark.parametrize("status", [0, 1])
def test_pips_words_are_shown_when_it_fails(capfd: pytest.CaptureFixture[str], status: int) -> None:
    script = f"print('Collecting a'); print('Installing collected packages: a'); print('ERROR: why'); exit({status})"
    with Path(os.devnull).open() as lock:
        assert pip_run.run([sys.executable, "-c", script], lock.fileno()) == (status == 0)
    shown = capfd.readouterr().out
    assert "unpacking, 1 packages" in shown
    assert ("ERROR: why" in shown) == (status != 0)


def test_machines_that_cannot_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(shared_env.SetupError, match="make prune-env"):
        shared_env.check_machine(shared_env.PackageSet("huge", (), disk_gib=1e9), tmp_path)
    monkeypatch.setattr(shared_env.sys, "version_info", (3, 12, 0))
    with pytest.raises(shared_env.SetupError, match="make env PYTHON="):
        shared_env.check_machine(TINY, tmp_path)
    monkeypatch.setattr(shared_env.platform, "machine", lambda: "aarch64")
    with pytest.raises(shared_env.SetupError, match="make lock"):
        shared_env.check_machine(TINY, tmp_path)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(shared_env.SetupError, match="XDG_CACHE_HOME="):
        shared_env.ensure(TINY)


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_the_shim_only_where_torchvision_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failures: int) -> None:
    outcomes: Iterator[str | None] = iter([*["RuntimeError: no nms"] * failures, None])
    monkeypatch.setattr(shared_env.Build, "import_failure", lambda build, modules: next(outcomes))
    folder = shared_env.site_packages(tmp_path)
    folder.mkdir(parents=True)
    build = shared_env.Build(TINY, tmp_path, 0)
    if failures == 2:
        with pytest.raises(shared_env.SetupError, match="even with the shim"):
            build.mend_torchvision()
        return
    build.mend_torchvision()
    assert len(list(folder.iterdir())) == (2 if failures else 0)
    if failures:
        line = (folder / f"{shared_env.SHIM_MODULE}.pth").read_text()
        assert run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {line}print(1)") == "1"


@pytest.mark.engine
@pytest.mark.parametrize("modules", ["torchvision", "vllm, transformers", "sglang", "ray.serve, ray.data"])
def test_the_real_environment_imports(modules: str) -> None:
    run(sys.executable, "-c", f"import {modules}")


# --- what is committed


@pytest.mark.parametrize("name", LOCKED)
def test_locks_are_pinned_hashed_and_name_no_machine(name: str) -> None:
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    requirements = re.findall(r"^[A-Za-z0-9].*?(?=^[^ ]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+ ", requirement), requirement[:80]
        assert "--hash=sha256:" in requirement, requirement[:80]
    assert not re.search(r"https?://|file:|--index|--find-links|^\s*#.*\s/", text, flags=re.MULTILINE)
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==(\S+)", text, flags=re.MULTILINE))
    for package, version in re.findall(
        r"^([\w-]+)(?:\[\S+\])?==(\S+)", (REQUIREMENTS / f"{name}.in").read_text(), re.M
    ):
        assert pins.get(package, version) == version, f"{name}.txt is older than {name}.in: run `make lock`"


def test_cpu_lock_leaves_out_what_links_cuda() -> None:
    text = (REQUIREMENTS / "cpu.txt").read_text()
    assert not re.search(r"^(torch|torchaudio|torchcodec|nvidia\S*)==", text, flags=re.MULTILINE)


def test_make_and_ci_scripts() -> None:
    targets = run("make", "-C", ROOT, "--no-print-directory", "help")
    for target in ("env", "demo", "test", "test-fast", "lint", "lock", "down", "clean", "bench-%"):
        assert re.search(rf"^{re.escape(target)}\s", targets, flags=re.MULTILINE), target
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    run("bash", "-n", ROOT / ".ci" / "run")
