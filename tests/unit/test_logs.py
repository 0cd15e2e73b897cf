"""Log lines for a terminal, the journal, and machines."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from edgeasd.logs import Form, set_up_logging

_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Return what went to stderr; the root logger is put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def _speak(form: Form, *, level: str = "info") -> None:
    set_up_logging(level=level, form=form)
    log = logging.getLogger("edgeasd.test")
    log.debug("quiet")
    log.info("a %s", "word")
    log.warning("mind\u00e9d")
    try:
        int("broken")
    except ValueError:
        log.exception("gone wrong")


def test_text_is_for_people(written: Callable[[], str]) -> None:
    _speak("text")
    lines = written().splitlines()
    assert re.fullmatch(f"{_STAMP} info a word", lines[0])
    assert re.fullmatch(f"{_STAMP} warning mind\u00e9d", lines[1])
    assert re.fullmatch(f"{_STAMP} error gone wrong", lines[2])
    assert lines[-1] == "ValueError: invalid literal for int() with base 10: 'broken'"


def test_the_journal_gets_levels_and_no_time(written: Callable[[], str]) -> None:
    _speak("journal", level="debug")
    lines = written().splitlines()
    assert lines[:4] == ["<7>quiet", "<6>a word", "<4>mind\u00e9d", "<3>gone wrong"]


def test_json_is_one_object_a_line(written: Callable[[], str]) -> None:
    _speak("json")
    text = written()
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["level"] for record in records] == ["info", "warning", "error"]
    assert records[0] == {"ts": records[0]["ts"], "level": "info", "logger": "edgeasd.test", "message": "a word"}
    assert re.fullmatch(_STAMP, records[0]["ts"])
    assert records[2]["message"].startswith("gone wrong\nTraceback")
    assert text.isascii()


def test_lines_below_the_level_are_left_out(written: Callable[[], str]) -> None:
    _speak("text", level="error")
    assert re.match(f"{_STAMP} error gone wrong\n", written())


def test_setting_up_twice_does_not_double_the_lines(written: Callable[[], str]) -> None:
    set_up_logging(level="info", form="text")
    _speak("journal")
    assert written().count("a word") == 1


@pytest.mark.parametrize("named", ["the pipe", "another file", "nonsense", "nothing"])
def test_the_journal_is_known_by_its_stream(named: str) -> None:
    read_fd, write_fd = os.pipe()
    status = os.fstat(write_fd)
    values = {
        "the pipe": f"{status.st_dev}:{status.st_ino}",
        "another file": f"{status.st_dev}:{status.st_ino + 1}",
        "nonsense": "somewhere",
        "nothing": "",
    }
    program = "import logging; from edgeasd.logs import set_up_logging as s; s(level='info', form='auto');"
    with os.fdopen(read_fd, encoding="utf-8") as pipe:
        subprocess.run(
            [sys.executable, "-c", program + "logging.info('hello')"],
            stderr=write_fd, env={**os.environ, "JOURNAL_STREAM": values[named]}, check=True, timeout=30,
        )  # fmt: skip
        os.close(write_fd)
        line = pipe.read()
    expected = "<6>hello\n" if named == "the pipe" else f"{_STAMP} info hello\n"
    assert re.fullmatch(expected, line)
