"""Role: put an engine server to sleep and wake it. Owns: each engine's calls and what it must be started with.

Asleep, an engine keeps its processes and gives its accelerator memory back: weights go to host memory (vLLM level 1,
SGLang) or are dropped and read again (vLLM level 2). Neither does so on a CPU. Must not know: when to sleep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import aiohttp

ARGS: Final[Mapping[str, dict[str, Any]]] = {
    "vllm": {"enable-sleep-mode": True},
    "sglang": {"enable-memory-saver": True},
}
ENV: Final[Mapping[str, dict[str, str]]] = {"vllm": {"VLLM_SERVER_DEV_MODE": "1"}, "sglang": {}}
"""vLLM offers the calls only so. The server is private to its replica and has a key of its own."""
_SLEEP: Final = {"vllm": "/sleep?level=1", "sglang": "/release_memory_occupation"}
_WAKE: Final = {"vllm": "/wake_up", "sglang": "/resume_memory_occupation"}


async def fall_asleep(kind: str, session: aiohttp.ClientSession, base_url: str, api_key: str) -> None:
    """Returns when the memory is given back. Only while nothing runs: vLLM aborts what does."""
    await _post(session, base_url + _SLEEP[kind], api_key)


async def wake(kind: str, session: aiohttp.ClientSession, base_url: str, api_key: str) -> None:
    """Returns when requests are taken again."""
    await _post(session, base_url + _WAKE[kind], api_key)


async def _post(session: aiohttp.ClientSession, url: str, api_key: str) -> None:
    async with session.post(url, json={}, headers={"Authorization": f"Bearer {api_key}"}) as response:
        if response.status != 200:
            text = (await response.text())[:200]
            raise RuntimeError(f"{url} answered {response.status}: {text}; was the engine started to be able to sleep?")
