"""Which errors a user can cure, and what to say. Owns: that list. Must not know: who raises them."""

from __future__ import annotations

import sys

INTERRUPTED = 130


class UsageError(Exception):
    """What was asked cannot be done; the message names the cure."""


def explained(error: Exception) -> str | None:
    """The message of an expected error; None for one that is a defect and deserves its traceback."""
    import httpx
    from sqlalchemy.exc import OperationalError

    from cluster.cli.api import RequestFailed
    from cluster.config import ConfigError
    from cluster.local import LocalClusterError
    from cluster.models import ModelError
    from cluster.state import KeyNotFoundError, StoreVersionError

    if isinstance(error, KeyNotFoundError):
        return str(error.args[0])
    if isinstance(error, UsageError | ConfigError | LocalClusterError | ModelError | RequestFailed | StoreVersionError):
        return str(error)
    if isinstance(error, httpx.ConnectError | ConnectionRefusedError):
        return f"nothing answers{_where(error)}: {error}. Is the cluster up? `tribes up` starts it."
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__}): `tribes status` shows what the cluster is doing"
    if isinstance(error, httpx.HTTPError | ConnectionError):
        return f"the connection failed ({error or type(error).__name__}): `tribes status` shows how the cluster is"
    ray_errors = sys.modules.get("ray.exceptions")  # an error of Ray's comes only where Ray is loaded
    if ray_errors is not None and isinstance(error, ray_errors.AuthenticationError):
        return "Ray refused the access token: use the one that the cluster was started with (RAY_AUTH_TOKEN_PATH)"
    if isinstance(error, OperationalError):
        return f"the state store cannot be used: {error.orig}. Check state.url in the configuration."
    return None


def _where(error: Exception) -> str:
    """The address that an HTTP client tried, where the error knows it."""
    request = getattr(error, "_request", None)
    return f" at {request.url.scheme}://{request.url.netloc.decode()}" if request is not None else ""
