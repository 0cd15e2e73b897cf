"""What `edgeasd check` looks at: each part yields findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check."""

    part: str
    what: str
    verdict: Verdict
    detail: str
    fix: str = ""
    """What to do about it; empty when nothing is to be done."""
    exit_code: int = 0
    """Of a failure."""


def exit_code_of(findings: Iterable[Finding]) -> int:
    """Return the exit code of the first failure, 0 without one: warnings let a node run."""
    return next((finding.exit_code for finding in findings if finding.verdict is Verdict.FAIL), 0)


class Reporter:
    """Makes findings of one part, so that a check says only what it found."""

    def __init__(self, part: str) -> None:
        self._part = part

    def ok(self, what: str, detail: str) -> Finding:
        """Return a finding that all is well."""
        return Finding(self._part, what, Verdict.OK, detail)

    def warn(self, what: str, detail: str, *, fix: str) -> Finding:
        """Return a finding that a node can live with."""
        return Finding(self._part, what, Verdict.WARN, detail, fix)

    def fail(self, what: str, detail: str, *, fix: str, exit_code: int) -> Finding:
        """Return a finding that a node cannot live with."""
        return Finding(self._part, what, Verdict.FAIL, detail, fix, exit_code)
