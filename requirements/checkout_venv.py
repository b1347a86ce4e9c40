"""Make a checkout's own thin `.venv` over a shared environment.

A checkout needs an interpreter of its own (`sys.executable`, console scripts, its own source on the path), while the
gigabytes behind it are the same for all checkouts. So `.venv` is a real but empty virtual environment. One `.pth` file
puts the checkout on the path and adds the shared site-packages as a site folder, so that `.pth` files in there work
too. Programs are the shared ones: compiled ones as links, scripts with this interpreter in their first lines.

Owns: the `.venv` folder. Must not know: how the shared environment was built. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import tomllib
import venv
from pathlib import Path

import shared_env

STAMP = "tribes-checkout.json"
PATH_FILE = "tribes.pth"
ENTRY_POINT = """# Console script of this checkout, written by requirements/checkout_venv.py.
import sys
from {module} import {function}

if __name__ == "__main__":
    sys.exit({function}())
"""


def identity(checkout: Path, shared: Path) -> str:
    """What a `.venv` was made from; it is made anew when any of it differs (a moved checkout, a new lock)."""
    sources = [Path(__file__), checkout / "pyproject.toml"]
    return json.dumps(
        {
            "checkout": str(checkout),
            "shared": str(shared),
            "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources},
        },
        indent=1,
    )


def is_current(folder: Path, checkout: Path, shared: Path) -> bool:
    try:
        same = (folder / STAMP).read_text() == identity(checkout, shared)
    except OSError:
        return False
    return same and shared_env.interpreter(folder).exists()


def make(folder: Path, checkout: Path, shared: Path) -> None:
    """Build `folder` anew; the stamp comes last, so that an interrupted one is not taken for whole."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=False, symlinks=True)
    write_path_file(folder, checkout, shared)
    link_data(folder, shared)
    link_programs(folder, shared)
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    write_console_scripts(folder, project.get("scripts", {}))
    write_metadata(folder, project)
    (folder / STAMP).write_text(identity(checkout, shared))


def write_path_file(folder: Path, checkout: Path, shared: Path) -> None:
    """The checkout first: a package that ships a top-level `tests` must not hide ours."""
    packages = str(shared_env.site_packages(shared))
    lines = f"{checkout}\nimport site; site.addsitedir({packages!r})\n"
    (shared_env.site_packages(folder) / PATH_FILE).write_text(lines)


def link_data(folder: Path, shared: Path) -> None:
    """Packages also put files beside site-packages (libiomp5.so, share/): found under `sys.prefix`, which is ours."""
    own = {"bin", "include", "lib", "lib64", "pyvenv.cfg", shared_env.STAMP}
    for parent, skip in ((shared, own), (shared / "lib", {shared_env.site_packages(shared).parent.name})):
        for entry in parent.iterdir():
            if entry.name not in skip:
                (folder / entry.relative_to(shared)).symlink_to(entry)


def link_programs(folder: Path, shared: Path) -> None:
    for entry in sorted((shared / "bin").iterdir()):
        target = folder / "bin" / entry.name
        if entry.name.lower().startswith(("python", "activate")) or not entry.is_file():
            continue
        if not entry.read_bytes().startswith(b"#!"):
            target.symlink_to(entry)
            continue
        write_script(target, shared_env.interpreter(folder), script_body(entry.read_text()))


def script_body(text: str) -> str:
    """A script less its first lines: `#!python`, or pip's `#!/bin/sh` form for long paths (three lines)."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[3:] if lines[0].strip() == "#!/bin/sh" and lines[1].startswith("'''exec'") else lines[1:])


def write_script(target: Path, interpreter: Path, body: str) -> None:
    """Shell and Python at once, since a `#!` line holds neither a long path nor one with a space."""
    head = f"#!/bin/sh\n'''exec' {shlex.quote(str(interpreter))} \"$0\" \"$@\"\n' '''\n"
    target.write_text(head + body)
    target.chmod(0o755)


def write_console_scripts(folder: Path, scripts: dict[str, str]) -> None:
    for name, reference in scripts.items():
        module, _, function = reference.partition(":")
        body = ENTRY_POINT.format(module=module, function=function)
        write_script(folder / "bin" / name, shared_env.interpreter(folder), body)


def write_metadata(folder: Path, project: dict[str, str]) -> None:
    """So that `importlib.metadata.version` knows the project, as after an editable installation."""
    info = shared_env.site_packages(folder) / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "INSTALLER").write_text("tribes\n")
    (info / "RECORD").write_text("")


def ensure(checkout: Path, shared: Path, name: str) -> bool:
    """Make `checkout/name` unless it is current; says whether it did."""
    folder = checkout / name
    if is_current(folder, checkout, shared):
        return False
    make(folder, checkout, shared)
    return True
