"""Ray's token authentication for a local cluster. Owns: switching it on. Must not know: what is behind it.

`ray start` protects a new cluster only if a token exists already, and a client reads the mode when Ray is first
imported: so the token is made and the mode set before either happens. A mode that the user has set is respected.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.local.errors import LocalClusterError

MODE = "RAY_AUTH_MODE"
_TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def enable_token_auth() -> None:
    """Call before the first `import ray` of the process."""
    if os.environ.setdefault(MODE, "token") != "token":
        return
    has_token = (Path.home() / ".ray" / "auth_token").exists() or any(name in os.environ for name in _TOKEN_SOURCES)
    if not has_token:
        command = [str(Path(sys.executable).with_name("ray")), "get-auth-token", "--generate"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise LocalClusterError(
                f"cannot make Ray's access token: {done.stderr.strip()[-300:]}; set {MODE}=disabled"
            )
