"""States that an outbox can find its disk in: each has an outcome, and none of them stops the node."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edgeasd.errors import CannotWriteError
from edgeasd.publish.identity import next_boot
from edgeasd.publish.outbox import Outbox, OutboxLimits
from tests.rig.disks import fill, no_descriptors, no_mount, no_room, read_only, relieve, small_disk
from tests.unit.test_outbox import DAY_NS, NOW_NS, events, held, scores

HOUR_NS = DAY_NS // 24


@contextmanager
def somebody_else(path: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    """Let another program work on the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)
        yield db


def aside(directory: Path) -> list[Path]:
    return list(directory.glob("outbox.db.corrupt-*"))


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE event (row INTEGER PRIMARY KEY, text TEXT)", "PRAGMA user_version=1"),
        ("CREATE TABLE something_else (x)",),
        ("CREATE TABLE event (row INTEGER PRIMARY KEY)", "CREATE VIEW score AS SELECT * FROM event"),
    ],
    ids=["other_columns", "other_tables", "views"],
)
def test_file_that_is_laid_out_otherwise_is_set_aside(tmp_path: Path, statements: tuple[str, ...]) -> None:
    with somebody_else(tmp_path / "outbox.db", *statements):
        pass
    with Outbox(tmp_path) as outbox:
        assert outbox.put(events(1), durable=True)
        assert (held(outbox), outbox.durable) == (["u:1:1"], True)
    assert len(aside(tmp_path)) == 1


@pytest.mark.parametrize(("at", "value"), [(18, 3), (19, 9), (47, 5)])
def test_header_of_a_file_nobody_can_read_or_write_is_damage(tmp_path: Path, at: int, value: int) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
    content = bytearray((tmp_path / "outbox.db").read_bytes())
    content[at] = value
    (tmp_path / "outbox.db").write_bytes(content)
    with Outbox(tmp_path) as outbox:
        assert (outbox.put(events(2), durable=True), outbox.durable) == (True, True)
    assert len(aside(tmp_path)) == 1


def test_trigger_that_somebody_left_is_not_run(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
    with somebody_else(
        tmp_path / "outbox.db", "CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM event; SELECT 1; END"
    ):
        pass
    with Outbox(tmp_path) as outbox:
        outbox.put(events(2), durable=True)
        assert held(outbox) == ["u:1:2"]
    assert len(aside(tmp_path)) == 1


def test_log_without_its_file_is_no_obstacle(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
        log = (tmp_path / "outbox.db-wal").read_bytes()
    (tmp_path / "outbox.db").unlink()
    (tmp_path / "outbox.db-wal").write_bytes(log)
    with Outbox(tmp_path) as outbox:
        assert outbox.put(events(2), durable=True)
        assert held(outbox)[-1] == "u:1:2"


@pytest.mark.parametrize(("column", "value"), [("body", b"\xff{"), ("id", "nobody's"), ("kind", "x"), ("topic", b"\0")])
def test_damage_that_sqlite_does_not_see_costs_the_message_alone(tmp_path: Path, column: str, value: object) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1, 2, 3), durable=True)
    with somebody_else(tmp_path / "outbox.db") as db:
        db.execute(f"UPDATE event SET {column} = ? WHERE id = 'u:1:2'", (value,))
    with Outbox(tmp_path) as outbox:
        assert held(outbox) == ["u:1:1", "u:1:3"]
        assert (outbox.depth(), outbox.dropped) == (2, 1)
    assert not aside(tmp_path)


def test_row_count_that_leaves_no_more_rows_is_corruption(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
    with somebody_else(tmp_path / "outbox.db", f"UPDATE sqlite_sequence SET seq = {2**63 - 1}"):
        pass
    with Outbox(tmp_path) as outbox:
        assert outbox.put(events(2), durable=True)
        assert held(outbox) == ["u:1:2"]


def test_file_that_another_program_writes_to_keeps_messages_waiting_not_the_node(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
    with somebody_else(tmp_path / "outbox.db", "BEGIN IMMEDIATE") as other, Outbox(tmp_path) as outbox:
        assert (outbox.put(events(2), durable=True), outbox.durable) == (False, False)
        other.execute("ROLLBACK")
        assert outbox.put(events(2), durable=True)
        assert (held(outbox), outbox.durable) == (["u:1:1", "u:1:2"], True)


def test_file_that_another_program_holds_for_itself_is_left_to_it(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
    with (
        somebody_else(tmp_path / "outbox.db", "PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE"),
        Outbox(tmp_path) as outbox,
    ):
        assert outbox.put(events(2), durable=True)
        assert (held(outbox), outbox.durable) == (["u:1:2"], False)
    with Outbox(tmp_path) as outbox:
        assert held(outbox) == ["u:1:1"]


def test_disk_that_dies_and_comes_back(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        outbox.put(events(1), durable=True)
        with no_room():
            assert (outbox.put(events(2), durable=True), outbox.durable) == (False, False)
            outbox.note_dropped(["u:1:3", "u:1:4"])
            outbox.remove(outbox.rows("event", after_row=0, limit=9) or [])
        assert outbox.put(events(5), durable=True)
        assert outbox.durable
        gap = outbox.gap()
        assert gap is not None
        assert (gap.from_id, gap.to_id, gap.count, outbox.dropped) == ("u:1:3", "u:1:4", 2, 2)
        outbox.remove([])
        assert held(outbox) == ["u:1:5"]  # what was delivered meanwhile is forgotten now


def test_process_without_descriptors_still_writes(tmp_path: Path) -> None:
    with Outbox(tmp_path) as outbox:
        with no_descriptors():
            assert outbox.put([*events(1), *scores(*range(2, 500))], durable=True)
        assert outbox.depth() == 499
    with no_descriptors(), pytest.raises(CannotWriteError, match="Too many open files"):
        Outbox(tmp_path)


@pytest.mark.skipif(bool(no_mount()), reason=str(no_mount()))
def test_disk_that_may_only_be_read_costs_nothing_but_durability(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with Outbox(disk / "state") as outbox:
            outbox.put(events(1), durable=True)
            known = outbox.identity
        read_only(disk, yes=True)
        with Outbox(disk / "state") as outbox:
            assert outbox.put(events(2), durable=True)
            assert (held(outbox), outbox.durable) == (["u:1:2"], False)
            assert outbox.identity.node_uuid != known.node_uuid  # its messages must not repeat the ids of another run
        assert "Read-only file system; nothing is kept on disk in this run" in caplog.text
        read_only(disk, yes=False)
        with Outbox(disk / "state") as outbox:
            assert (held(outbox), outbox.durable) == (["u:1:1"], True)
            assert outbox.identity.node_uuid == known.node_uuid


@pytest.mark.skipif(bool(no_mount()), reason=str(no_mount()))
def test_node_starts_on_a_disk_without_a_free_byte(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as state:
        with Outbox(state) as outbox:
            outbox.put(events(1), durable=True)
        for empty in (False, True):
            if empty:
                for path in state.iterdir():
                    path.unlink()
            fill(state)
            with Outbox(state) as outbox:
                assert outbox.identity.node_uuid
                stored = outbox.put(events(2), durable=True)
                assert not (stored and outbox.durable)  # in memory, here or there: nothing else can be
            relieve(state)
        with Outbox(state) as outbox:
            assert outbox.put(events(3), durable=True)
            assert outbox.durable


HUNGRY = """
import resource, sys
from pathlib import Path
from edgeasd.publish.message import Kind, Parcel
from edgeasd.publish.outbox import Outbox

outbox = Outbox(Path(sys.argv[1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)
hoard = []
for number in range(1, 100_000):
    message_id = outbox.identity.message_id(number)
    outbox.put([Parcel("t", Kind.EVENT, b"{}", id=message_id)], durable=True)
    print(message_id, flush=True)
    hoard.append(bytearray(1 << 16))
"""


def test_process_that_runs_out_of_memory_leaves_a_whole_outbox(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HUNGRY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
    told = done.stdout.splitlines()
    assert len(told) > 10
    with Outbox(tmp_path) as outbox:
        assert held(outbox) == told
        assert outbox.durable


def clocked(directory: Path, times_ns: list[int]) -> Outbox:
    """Return an outbox that believes the last of `times_ns`, and looks for what is too old with every put."""
    limits = OutboxLimits(max_age_s=3600.0)
    return Outbox(directory, limits=limits, utc_ns=lambda: times_ns[-1], expire_every_s=0.0)


@pytest.mark.parametrize("jump_ns", [2 * HOUR_NS, 10 * 365 * DAY_NS, -2 * HOUR_NS, -NOW_NS])
def test_clock_that_jumps_makes_nothing_old_that_came_in_this_run(tmp_path: Path, jump_ns: int) -> None:
    clock = [NOW_NS]
    with clocked(tmp_path, clock) as outbox:
        outbox.put(events(1), durable=True)
        clock.append(NOW_NS + jump_ns)
        outbox.put(events(2), durable=True)
        assert (held(outbox), outbox.dropped) == (["u:1:1", "u:1:2"], 0)


def test_messages_of_a_clock_that_was_not_set_expire_with_those_behind_them(tmp_path: Path) -> None:
    with clocked(tmp_path, [DAY_NS]) as outbox:  # 1970
        outbox.put(events(1), durable=True)
    with clocked(tmp_path, [NOW_NS]) as outbox:
        outbox.put(events(2), durable=True)
        assert held(outbox) == ["u:1:1", "u:1:2"]  # nobody knows how old the first is
    with clocked(tmp_path, [NOW_NS + 2 * HOUR_NS]) as outbox:
        outbox.put(events(3), durable=True)
        assert held(outbox) == ["u:1:3"]


@pytest.mark.parametrize("boot_epoch", [0, -1, 2**60, 1.5, True, "7", None], ids=str)
def test_boot_that_nobody_can_have_counted_gives_a_new_uuid(tmp_path: Path, boot_epoch: object) -> None:
    before = next_boot(tmp_path)
    text = json.dumps({"node_uuid": before.node_uuid, "boot_epoch": boot_epoch})
    (tmp_path / "identity.json").write_text(text)
    after = next_boot(tmp_path)
    assert (after.boot_epoch, after.node_uuid != before.node_uuid) == (1, True)


def test_lock_file_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(CannotWriteError, match="Is a directory"):
        Outbox(tmp_path)
