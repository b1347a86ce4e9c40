"""For all tests. Ray reads its authentication mode when it is first imported, by whichever test: so it is set here."""

from __future__ import annotations

from cluster.local.auth import enable_token_auth

enable_token_auth()
