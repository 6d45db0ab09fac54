"""The bar and the lines of a training, as a terminal and a log get them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from cellseg_d2.engine import progress
from cellseg_d2.engine.progress import ProgressWriter, memory_in_use


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(writer: ProgressWriter, iterations: range, interrupted: bool = False) -> None:
    """What the trainer and its hooks do around a writer."""
    with EventStorage(iterations.start) as storage:
        for i in iterations:
            storage.iter = i
            storage.put_scalars(total_loss=3.0, loss_cls=1.0 + i / 1000, loss_mask=2.0, time=0.5)
            storage.put_scalars(lr=1.5e-4, epoch=(i + 1) / 10, smoothing_hint=False)
            writer.write()
        storage.iter = iterations.stop
        if not interrupted:
            assert storage.iter == writer.max_iter
        writer.write()
        writer.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if r.name == progress.__name__]


def test_a_log_gets_a_line_every_20_iterations_and_the_last_one(lines) -> None:
    run(ProgressWriter(50, 8, stream=io.StringIO()), range(50))
    assert [line.split("  ")[0] for line in lines()] == [
        "iteration 20/50",
        "iteration 40/50",
        "iteration 50/50",
    ]
    for part in ("epoch 2.00", "loss 3", "lr 0.00015", "16 images/s", "cls 1.01", "mask 2"):
        assert part in lines()[0].split("  "), part
    assert re.search(r"  0:00:00 left  .*  \d+\.\d GiB  ", lines()[0])


def test_nothing_is_drawn_where_nobody_looks() -> None:
    stream = io.StringIO()
    run(ProgressWriter(50, 8, stream=stream), range(50))
    assert stream.getvalue() == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize("width", [0, 100])
def test_a_terminal_without_a_width_gets_lines(lines, width: int) -> None:
    fcntl, termios = (pytest.importorskip(name) for name in ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(theirs, "w") as stream:
        run(ProgressWriter(5, 8, stream=stream), range(5))
        print("end", file=stream, flush=True)
        shown = reader.read(10_000).decode()
    assert ("100%" in shown) == (width > 0)
    assert len(lines()) == 1


def test_an_interrupted_run_tells_its_last_whole_iteration(lines) -> None:
    run(ProgressWriter(50, 8, stream=io.StringIO()), range(27), interrupted=True)
    assert [line.split("  ")[0] for line in lines()] == ["iteration 20/50", "iteration 27/50"]


def test_a_resumed_run_counts_on(lines) -> None:
    stream = Terminal()
    run(ProgressWriter(50, 8, stream=stream), range(35, 50))
    assert [line.split("  ")[0] for line in lines()] == ["iteration 40/50", "iteration 50/50"]
    assert stream.getvalue().split("\r")[1].split()[-1] == "35/50"


def test_the_time_left_is_by_the_clock(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 90))  # seconds: 90 an iteration
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    run(ProgressWriter(60, 8, stream=io.StringIO()), range(60))
    assert "1:00:00 left" in lines()[0]  # 40 iterations
    assert "0:30:00 left" in lines()[1] and "0:00:00 left" in lines()[2]


def test_a_run_that_ends_before_its_first_iteration_tells_nothing(lines) -> None:
    writer = ProgressWriter(50, 8, stream=Terminal())
    with EventStorage():
        writer.write()
        writer.close()
    assert lines() == []


def test_a_terminal_gets_one_bar(lines) -> None:
    stream = Terminal()
    run(ProgressWriter(30, 8, stream=stream), range(30))
    shown = stream.getvalue()
    assert shown.count("\n") == 1 and shown.endswith("\n")
    last = shown.strip().split("\r")[-1]
    assert "100%" in last and "30/30" in last and "loss 3" in last and "mask 2" in last


@contextlib.contextmanager
def console(folder: Path) -> Iterator[Terminal]:
    """A terminal that both the bar and the log go to, and the log's file, as in a training.

    No fixture: pytest puts its own streams in place between the fixtures and the test.
    """
    loggers = [logging.getLogger(name) for name in ("cellseg_d2", "detectron2")]
    kept = [(logger.handlers[:], logger.propagate) for logger in loggers]
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        setup_logger.cache_clear()
        for logger in loggers:
            logger.handlers.clear()
            setup_logger(str(folder), name=logger.name, color=False)
        yield terminal
    setup_logger.cache_clear()
    for logger, (handlers, propagate) in zip(loggers, kept, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate


def test_what_is_logged_does_not_break_the_bar(tmp_path: Path) -> None:
    with console(tmp_path) as terminal:
        train_and_log()
        for handler in logging.getLogger("cellseg_d2").handlers:
            handler.flush()
    lines = terminal.getvalue().split("\n")
    told = [line for line in lines if "a warning" in line or "Evaluating" in line]
    assert len(told) == 2
    for line in told:
        # The bar's line was wiped before, and nothing of the bar stands behind the text.
        assert re.fullmatch(r"(?:.*\r)?\[[^\r|]*", line), line
    assert "iteration 20/40" not in terminal.getvalue()
    assert lines[-2].endswith("after the bar"), "the console's own handler is back"
    log = (tmp_path / "log.txt").read_text()
    for text in ("a warning", "Evaluating", "iteration 20/40", "iteration 40/40", "after the bar"):
        assert log.count(text) == 1, text


def train_and_log() -> None:
    logger = logging.getLogger("cellseg_d2.engine.trainer")
    upstream = logging.getLogger("detectron2.evaluation")
    writer = ProgressWriter(40, 8)
    with EventStorage() as storage:
        for i in range(40):
            storage.iter = i
            storage.put_scalar("total_loss", 1.0)
            writer.write()
            if i == 10:
                logger.warning("a warning")
                upstream.info("Evaluating")
        writer.close()
    logger.info("after the bar")


def test_memory_is_the_process_s_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = memory_in_use()
    block = bytearray(b"x" * 2**27)
    assert 0.9 * len(block) < memory_in_use() - before < 1.5 * len(block)


def test_an_iteration_costs_little() -> None:
    """No clock: what is computed for an iteration that shows nothing new is nothing."""
    calls = []
    writer = ProgressWriter(10_000, 8, stream=Terminal())
    text = writer._text
    writer._text = lambda *arguments: calls.append(time.monotonic()) or text(*arguments)
    run(writer, range(9_000, 9_500), interrupted=True)
    seconds = calls[-1] - calls[0]
    assert len(calls) <= 2 + 500 // 20 + seconds / progress._REFRESH
