"""What a run prints may go nowhere; the run goes on."""

import io
import logging
import os
import sys
import types

import pytest

from jaxeff.eval import console
from jaxeff.train import announce, noise


class Broken(io.StringIO):
    """A stream of which nobody reads the other end."""

    def write(self, text):
        raise BrokenPipeError


class Terminal(io.StringIO):
    def isatty(self):
        return True


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("made", [Broken, closed, lambda: None], ids=["broken", "closed", "none"])
def test_lost_output_does_not_stop_a_run(monkeypatch, made):
    given_away = []
    monkeypatch.setattr(os, "dup2", lambda _, to: given_away.append(to))
    monkeypatch.setattr(sys, "stdout", made())
    lost = sys.stdout is not None
    progress = console.Progress(10)
    for step in (1, 2):
        console.say("a line")
        progress.advance(step)
        progress.show(step, {"loss": 1.0})
    progress.close()
    print("another", flush=True)  # of somebody else
    assert given_away == ([1] if lost else [])  # else Python complains when it ends


def test_bar_on_a_terminal_that_goes_away(monkeypatch):
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", Terminal())
    progress = console.Progress(10)
    assert progress._bar is not None

    def gone(*_, **__):
        raise OSError(5, "Input/output error")

    for method in ("update", "stop"):
        monkeypatch.setattr(progress._bar, method, gone)
    progress.show(1, {"loss": 1.0})
    progress.close()


def test_threads_of_a_failed_save_do_not_repeat_its_error(monkeypatch, caplog):
    """Its tracebacks; everything else is heard."""
    heard = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: heard.append(args[1]))
    monkeypatch.setattr(sys, "unraisablehook", lambda one: heard.append(one.exc_value))
    for _ in range(2):
        noise.drop_repeated_tracebacks()
    news, closed = RuntimeError("news"), RuntimeError("Event loop is closed")
    for error in (news, closed):
        sys.excepthook(RuntimeError, error, None)
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert heard == [news, news]
    logger = logging.getLogger("asyncio")
    logger.error("Task exception was never retrieved")
    logger.error("something else")
    assert [record.message for record in caplog.records] == ["something else"]


def test_a_part_without_examples_is_told(tmp_path, capsys):
    announce.results({"metrics": {"validation": {}, "test": {"loss": 1.0}}}, tmp_path)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["validation no examples", "test       loss 1.0000"]
