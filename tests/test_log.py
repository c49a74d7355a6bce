"""The log of the library: whatever handlers do, and however much there is to log."""

import logging
from collections.abc import Callable, Iterator

import pytest

from cuelight import _log
from cuelight._log import Log, flush_logs, get_log


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    name = f"cuelight.{request.node.name}"
    yield get_log(name)
    del _log._logs[name]


class Raising(logging.Handler):
    def __init__(self, raised: BaseException) -> None:
        super().__init__()
        self.raised = raised

    def emit(self, record: logging.LogRecord) -> None:
        raise self.raised


RAISED = [ValueError("x"), RecursionError(), SystemExit(3), GeneratorExit(), BaseException("bare")]


@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("where", ["handler", "filter"])
def test_a_log_handler_or_filter_that_raises_ends_nothing(
    log: Log, where: str, raised: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger(log.name)

    def refuse(record: logging.LogRecord) -> bool:
        raise raised

    if where == "handler":
        logger.addHandler(Raising(raised))
    else:
        logger.addFilter(refuse)
    log.error("something %s", "failed", error=ValueError("y"))
    assert type(raised).__name__ in capsys.readouterr().err
    logger.handlers.clear()
    logger.filters.clear()


def test_a_logger_class_that_raises_ends_nothing(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(level: int) -> bool:
        raise ValueError("broken")

    monkeypatch.setattr(logging.getLogger(log.name), "isEnabledFor", broken)
    log.warning("heard by nobody")
    log.debug("nor this")


def test_a_record_names_the_line_that_logged_it_and_keeps_its_arguments(
    log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("y")
    log.error("%s failed", "it", error=error, extra={"task_id": "t-1"})
    (record,) = caplog.records
    assert record.filename == "test_log.py"
    assert record.funcName == "test_a_record_names_the_line_that_logged_it_and_keeps_its_arguments"
    assert (record.msg, record.args) == ("%s failed", ("it",))
    assert record.exc_info == (ValueError, error, None)
    assert record.__dict__["task_id"] == "t-1"


def test_an_argument_that_cannot_be_shown_is_named(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise ValueError("no")

        __repr__ = __str__

    log.warning("there is %s", Hostile())
    assert caplog.messages == ["there is %s ['<Hostile: its repr() raised ValueError>']"]


@pytest.mark.parametrize("write", [Log.warning, Log.error], ids=["warning", "error"])
def test_long_texts_and_tracebacks_are_cut(
    log: Log, caplog: pytest.LogCaptureFixture, write: Callable[..., None]
) -> None:
    write(log, "long: %s", "x" * 10**7, error=ValueError("y" * 10**7))
    (record,) = caplog.records
    assert len(record.getMessage()) < 10_000
    assert record.exc_text is not None
    assert len(record.exc_text) < 25_000


def test_a_flood_of_records_is_counted_and_summarized(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2_345):
        log.error("crash %d", number)
    log.error("another kind")
    assert [message for message in caplog.messages if message.startswith("crash")] == [
        f"crash {number}" for number in range(10)
    ]
    assert "another kind" in caplog.messages
    summaries = [message.partition(" more")[0] for message in caplog.messages if "left out" in message]
    assert summaries == ["10", "100", "1000"]
    caplog.clear()
    flush_logs()
    (summary,) = caplog.messages
    assert summary.startswith("2335 more records like this were left out")
    assert "crash %d" in summary
    caplog.clear()
    flush_logs()
    assert not caplog.messages


def test_a_window_that_is_over_is_summarized_before_the_next_record(
    log: Log, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for _ in range(15):
        log.warning("again", kind="one")
    now += _log.WINDOW
    log.warning("again", kind="one")
    assert len(caplog.messages) == 12
    assert caplog.messages[10].startswith("5 more records like this")
    assert caplog.messages[11] == "again"


def test_the_kinds_that_are_counted_are_bounded(log: Log) -> None:
    for number in range(_log.KINDS * 2):
        log.warning("kind", kind=number)
    assert len(log._counts) == _log.KINDS


def test_levels_below_warning_are_not_limited(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, log.name):
        for number in range(30):
            log.debug("step %d", number)
            log.log(logging.INFO, "step %d", number)
    assert len(caplog.messages) == 60
