"""What a client hears when the state store or the file store is away. Must not know: what was asked of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from serve_apps.gateway.errors import ApiError


@contextlib.contextmanager
def answered_when_away() -> Iterator[None]:
    """A 503 for trouble of the stores, as long as no answer has begun."""
    try:
        yield
    except SQLAlchemyError as error:
        message = "the state store is away: nothing was accepted or changed"
        raise ApiError(503, "store_unavailable", message, retry_after_s=1.0) from error
    except OSError as error:
        message = "the file store is away: nothing was accepted or changed"
        raise ApiError(503, "file_store_unavailable", message, retry_after_s=1.0) from error
