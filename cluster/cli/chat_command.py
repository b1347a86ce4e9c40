"""`tribes chat`: talk to a model in the terminal. Owns: the conversation. Must not know: the cluster behind the URL."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UsageError
from cluster.cli.options import DEFAULT_CONFIG, ConfigOption, load
from cluster.cli.screen import error_console

if TYPE_CHECKING:
    import httpx

    from cluster.cli.api import Answer
    from cluster.config import TribesConfig

FORGET = "/new"
PROMPT = "you> "


def chat(
    config: ConfigOption = DEFAULT_CONFIG,
    model: Annotated[str | None, typer.Option(help="Model id; default: the first one served.")] = None,
    key: Annotated[str | None, typer.Option(help="API key; default: the local default key.")] = None,
    tier: Annotated[str, typer.Option(help="service_tier: auto, default, priority or flex.")] = "auto",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
) -> None:
    """Chat with a model. Ctrl-D ends, Ctrl-C breaks an answer off, /new forgets. Piped text is answered once."""
    loaded = load(config)
    body: dict[str, Any] = {"model": model or first_model(loaded), "service_tier": tier}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    conversation = Conversation(loaded, key or default_key(loaded), body, system)
    with asyncio.Runner() as runner:
        try:
            if sys.stdin.isatty():
                talk(conversation, runner)
            else:
                runner.run(conversation.ask(sys.stdin.read()))
        finally:
            runner.run(conversation.close())


def first_model(config: TribesConfig) -> str:
    for item in config.serving().values():
        return item.model
    raise UsageError("no model of this configuration is served; its deployments are for batch jobs only")


def default_key(config: TribesConfig) -> str:
    """The key that `tribes up` made."""
    from cluster.local.keys import key_path

    path: Path = key_path(config)
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise UsageError(f"no default key at {path}: run `tribes up` first, or pass --key") from None


def talk(conversation: Conversation, runner: asyncio.Runner) -> None:
    """Turn by turn until end of input; a request that fails does not end the conversation."""
    import httpx

    from cluster.cli.api import RequestFailed
    from cluster.cli.errors import explained

    with_line_editing()
    print(f"{conversation.model}; Ctrl-D ends, {FORGET} forgets the conversation")
    while True:
        try:
            text = input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text.strip() == FORGET:
            conversation.forget()
        elif text.strip():
            try:
                runner.run(conversation.ask(text))
            except KeyboardInterrupt:
                print(" [broken off]")
            except (RequestFailed, httpx.HTTPError) as error:
                error_console().print(explained(error), style="red", markup=False, soft_wrap=True)


def with_line_editing() -> None:
    """Arrow keys and history in `input`, where this Python has them."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


class Conversation:
    """The messages so far, and the connection. A turn that fails leaves no trace."""

    def __init__(
        self,
        config: TribesConfig,
        key: str,
        body: dict[str, Any],
        system: str | None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx

        from cluster.cli.api import api_url, timeouts

        self._key = key
        self._body = body
        self._first = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._first)
        longest_wait_s = max(policy.max_wait_s for policy in config.scheduling.classes.values())
        self._client = httpx.AsyncClient(
            base_url=api_url(config), timeout=timeouts(longest_wait_s), transport=transport
        )

    @property
    def model(self) -> str:
        return str(self._body["model"])

    def forget(self) -> None:
        self.messages = list(self._first)

    async def ask(self, text: str) -> Answer:
        """One turn: prints the answer as it comes, and remembers it."""
        from cluster.cli.api import stream_chat

        messages = [*self.messages, {"role": "user", "content": text}]
        answer = await stream_chat(self._client, self._key, {**self._body, "messages": messages}, _write)
        _write("\n")
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    async def close(self) -> None:
        await self._client.aclose()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
