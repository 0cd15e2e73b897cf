"""What is done of a replay: a part of each table for each recording, kept until all of them are joined.

The parts lie in a folder beside the first table, `scores.csv.parts`. A recording is done once its marker is there, that
is written last and holds the sizes of its parts: what a crash or a power cut left unfinished is done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeasd.archive.takes import Take
from edgeasd.errors import CannotWriteError

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Played:
    """What came of one recording."""

    heard_s: float = 0.0
    n_windows: int = 0
    n_events: int = 0
    truncated: bool = False
    """True when it ends before its header says."""
    bad: str | None = None
    """Why it could not be played; then there are no parts."""
    judges_broke: bool = False
    """True when that was not the fault of its file, as far as is known."""
    n_bytes: Mapping[str, int] = field(default_factory=dict)
    """Of each part, by table."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The folder of parts; any number of processes may keep recordings in it at once."""

    folder: Path
    holder: str = "whole"
    """Whose work this is: that of one shard, or the whole."""

    def part(self, take: Take, table: str) -> Path:
        """Return where a part lies."""
        return self.folder / f"{take.key}.{table}.csv"

    def recall(self, take: Take) -> Played | None:
        """Return what came of a recording, None when it is not done or its parts are not whole."""
        for marker in (self._marker(take), self._marker(take, bad=True)):
            with suppress(OSError, ValueError, TypeError):
                found = Played(**json.loads(marker.read_bytes()))
                if all(self.part(take, table).stat().st_size == n for table, n in found.n_bytes.items()):
                    return found
        return None

    def keep(self, take: Take, played: Played, made: Mapping[str, Path], *, bench: Path) -> Played:
        """Take over the parts of a recording, by table, from a workbench, and mark it as done."""
        try:
            kept = replace(played, n_bytes={table: path.stat().st_size for table, path in made.items()})
            for table, path in made.items():
                path.replace(self.part(take, table))
            marker = bench / "marker"
            marker.write_text(json.dumps(asdict(kept)), encoding="utf-8")
            marker.replace(self._marker(take, bad=kept.bad is not None))
        except OSError as exc:
            raise CannotWriteError(f"{self.folder}: cannot be written: {exc.strerror}") from exc
        return kept

    @contextmanager
    def workbench(self) -> Iterator[Path]:
        """Lend a folder of one's own on the disk where parts are kept; one for many recordings, for it costs time."""
        try:
            lent = TemporaryDirectory(dir=self.folder, prefix=f".{self.holder}-", ignore_cleanup_errors=True)
        except OSError as exc:
            raise CannotWriteError(f"{self.folder}: cannot be written: {exc.strerror}") from exc
        with lent as folder:
            yield Path(folder)

    def clear(self) -> None:
        """Remove what workbenches of processes that were killed have left."""
        for folder in self.folder.glob(f".{self.holder}-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def n_done(self) -> int:
        """Return how many recordings are done, without those that could not be played."""
        return sum(1 for _ in self.folder.glob("*.json"))

    def join(self, table: str, path: Path, takes: Sequence[Take]) -> None:
        """Put the parts of recordings together, in order, under the header that each of them has."""
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as out:
                for index, take in enumerate(takes):
                    with self.part(take, table).open("rb") as part:
                        header = part.readline()
                        if index == 0:
                            out.write(header)
                        shutil.copyfileobj(part, out, _COPY_BYTES)
            partial.replace(path)
        except OSError as exc:
            with suppress(OSError):
                partial.unlink()
            raise CannotWriteError(f"{path}: cannot be written: {exc.strerror}") from exc

    def remove(self) -> None:
        """Delete the folder; renamed first, so that a folder of parts is whole or not there."""
        gone = self.folder.with_name(f"{self.folder.name}.joined")
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _marker(self, take: Take, *, bad: bool = False) -> Path:
        return self.folder / f"{take.key}.{'bad' if bad else 'json'}"
