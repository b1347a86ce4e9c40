"""`tribes chat` with piped input, and the conversation behind it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.api import RequestFailed
from cluster.cli.app import app
from cluster.cli.chat_command import Conversation, talk
from cluster.config import load_config
from tests.unit.cli.conftest import write_config
from tests.unit.cli.fake_gateway import FakeGateway


def chat(config_path: Path, text: str, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["chat", "-c", str(config_path), *arguments], input=text)
    return result.exit_code, result.stdout, result.stderr


def test_piped_text_is_answered_once_with_the_default_key(live_config: Path, gateway: FakeGateway) -> None:
    assert chat(live_config, "two\nlines\n", "--tier", "flex", "--system", "Be kind.") == (0, "Hello!\n", "")
    (request,) = gateway.requests
    assert (request["model"], request["service_tier"], gateway.keys) == ("m", "flex", ["sk-default"])
    assert [(m["role"], m["content"]) for m in request["messages"]] == [
        ("system", "Be kind."),
        ("user", "two\nlines\n"),
    ]


def test_a_given_key_and_model_are_used(live_config: Path, gateway: FakeGateway) -> None:
    assert chat(live_config, "x", "--key", "sk-mine", "--model", "other", "--max-tokens", "5")[0] == 0
    assert gateway.keys == ["sk-mine"]
    assert gateway.requests[0]["model"] == "other" and gateway.requests[0]["max_tokens"] == 5


def test_a_refusal_is_one_line(live_config: Path, gateway: FakeGateway) -> None:
    gateway.fail_status = 429
    code, _, error = chat(live_config, "x")
    assert code == 1 and "the queue is full" in error and "Traceback" not in error


def test_without_a_key_file_the_cure_is_named(config_path: Path) -> None:
    code, _, error = chat(config_path, "x")
    assert code == 1 and "tribes up" in error and "--key" in error


def test_nobody_listening_is_said_with_the_address(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        code, _, error = chat(write_config(tmp_path, port), "x", "--key", "k")
    assert code == 1 and f"127.0.0.1:{port}" in error.replace("\n", "") and "tribes up" in error


async def test_history_grows_by_finished_turns_only(live_config: Path, gateway: FakeGateway) -> None:
    conversation = Conversation(load_config(live_config), "k", {"model": "m"}, "Be kind.")
    await conversation.ask("first")
    gateway.fail_after_words = 2
    with pytest.raises(RequestFailed):
        await conversation.ask("lost")
    gateway.fail_after_words = None
    await conversation.ask("second")
    sent = [message["content"] for message in gateway.requests[-1]["messages"]]
    assert sent == ["Be kind.", "first", "Hello!", "second"]
    conversation.forget()
    assert [message["role"] for message in conversation.messages] == ["system"]
    await conversation.close()


def test_a_conversation_survives_failures_and_ends_with_the_input(
    live_config: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.fail_status = 429

    def lines(prompt: str) -> str:
        line = next(typed)
        if line == "end":
            raise EOFError
        gateway.fail_status = 429 if line == "refused" else None
        return line

    typed = iter(["refused", "", "first", "second", "/new", "third", "end"])
    monkeypatch.setattr("builtins.input", lines)
    with asyncio.Runner() as runner:
        conversation = Conversation(load_config(live_config), "k", {"model": "m"}, None)
        talk(conversation, runner)
        runner.run(conversation.close())
    sent = [[message["content"] for message in request["messages"]] for request in gateway.requests]
    assert sent == [["refused"], ["first"], ["first", "Hello!", "second"], ["third"]]
    shown = capsys.readouterr()
    assert shown.out.count("Hello!\n") == 3 and "the queue is full" in shown.err
