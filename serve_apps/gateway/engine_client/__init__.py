"""Requests to engine servers over persistent connections, for the one thing that a gateway does with every token.

A chunk through aiohttp's parser, reader and timers costs more than the rest of the relay (`python -m
benchmarks.gateway_sides.profile_door` shows a request's way). httptools (llhttp) reads the bytes here, and whatever
came since the last look is handed on at once.
Plain HTTP/1.1 to engines of our own and nothing else; other people's servers are asked through aiohttp.

Must not know: leases, attempts, what is in a body.
"""

from serve_apps.gateway.engine_client.client import EngineClient
from serve_apps.gateway.engine_client.connection import EngineConnectError, EngineConnectionError
from serve_apps.gateway.engine_client.exchange import Exchange

__all__ = ["EngineClient", "EngineConnectError", "EngineConnectionError", "Exchange"]
