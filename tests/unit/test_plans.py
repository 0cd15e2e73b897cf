"""What is built on a node is handed out exactly as it was built, or not at all."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeasd.engine.plans import PlanCache, PlanKey, open_proven
from edgeasd.engine.sealing import seal, unseal

KEY = PlanKey(
    kind="tensorrt-plan",
    source_sha256="ab" * 32,
    precision="fp16",
    library="tensorrt 10.3.0",
    device="Orin",
    capability="8.7",
)
PLAN = bytes(range(256)) * 3


@pytest.fixture
def cache(tmp_path: Path) -> PlanCache:
    return PlanCache(tmp_path / "engine")


def _open(cache: PlanCache, plan: bytes, *, key: PlanKey = KEY) -> tuple[bytes, bool]:
    """Open a plan that is fine; return it and whether it was there."""
    taken: list[bytes] = []
    was_there = open_proven(cache, key, build=lambda: plan, prove=taken.append)
    [found] = taken
    return found, was_there


def _only_file(cache: PlanCache) -> Path:
    [path] = (cache.folder / "built").iterdir()
    return path


def test_what_was_put_is_there_for_the_next_process_and_nothing_else_is(cache: PlanCache) -> None:
    cache.put(KEY, PLAN)
    assert PlanCache(cache.folder).get(KEY) == PLAN
    for name in (field.name for field in fields(PlanKey)):
        assert cache.get(replace(KEY, **{name: "another"})) is None, name
    [entry] = cache.entries()
    assert (entry.key, entry.n_bytes) == (KEY, len(PLAN))


def test_nobody_else_may_read_or_write_it(cache: PlanCache) -> None:
    cache.put(KEY, PLAN)
    modes = {path.name: path.stat().st_mode & 0o777 for path in cache.folder.rglob("*")}
    assert modes == {"built": 0o700, "secret": 0o600, "lock": 0o600, _only_file(cache).name: 0o600}
    assert cache.folder.stat().st_mode & 0o777 == 0o700


@settings(max_examples=150, deadline=None)
@given(data=st.data(), content=st.binary(max_size=300))
def test_no_byte_of_a_sealed_file_can_be_another(data: st.DataObject, content: bytes) -> None:
    sealed = bytearray(seal(KEY.canonical(), content, b"secret"))
    where = data.draw(st.integers(0, len(sealed) - 1))
    sealed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"edgeasd has sealed|another key|changed since"):
        unseal(bytes(sealed), b"secret", key=KEY.canonical())


@settings(max_examples=80, deadline=None)
@given(junk=st.binary(max_size=400))
def test_what_is_not_sealed_is_refused_whatever_it_is(junk: bytes) -> None:
    sealed = seal(KEY.canonical(), PLAN, b"secret")
    for data in (junk, sealed[: len(junk)], sealed[:60] + junk, sealed + junk + b"\0"):
        with pytest.raises(ValueError, match=r"edgeasd has sealed|another key|changed since"):
            unseal(data, b"secret", key=KEY.canonical())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, len(PLAN) + 100), mask=st.integers(1, 255))
def test_a_tampered_file_is_not_handed_out_and_does_not_stay(cache: PlanCache, where: int, mask: int) -> None:
    cache.put(KEY, PLAN)
    path = _only_file(cache)
    sealed = bytearray(path.read_bytes())
    sealed[where] ^= mask
    path.write_bytes(sealed)
    assert cache.entries() == []
    assert cache.get(KEY) is None
    assert not path.exists()


def _cut_short(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"")


def _sealed_elsewhere(path: Path, tmp_path: Path) -> None:
    elsewhere = PlanCache(tmp_path / "elsewhere")
    elsewhere.put(KEY, PLAN)
    path.write_bytes(_only_file(elsewhere).read_bytes())


def _of_another_key(path: Path, tmp_path: Path) -> None:
    cache = PlanCache(path.parent.parent)
    cache.put(replace(KEY, library="tensorrt 10.4.0"), b"stale")
    [other] = set(path.parent.iterdir()) - {path}
    other.rename(path)


def _a_link(path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "aside")
    path.symlink_to(tmp_path / "aside")


def _a_pipe(path: Path, tmp_path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _readable_by_all(path: Path, tmp_path: Path) -> None:
    path.chmod(0o604)


def _writable_by_the_group(path: Path, tmp_path: Path) -> None:
    path.chmod(0o620)


def _of_another_user(path: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize(
    "spoil",
    [_cut_short, _empty, _sealed_elsewhere, _of_another_key, _a_link, _a_pipe, _readable_by_all,
     _writable_by_the_group, _of_another_user],
)  # fmt: skip
def test_a_file_that_is_not_ours_is_built_anew(
    cache: PlanCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path, Path], None]
) -> None:
    cache.put(KEY, PLAN)
    spoil(_only_file(cache), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert _open(cache, b"anew") == (b"anew", False)
    assert "it is built anew" in caplog.text
    assert _open(cache, b"never") == (b"anew", True)


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 33])
def test_a_spoilt_secret_is_replaced_and_all_is_built_anew(cache: PlanCache, secret: bytes) -> None:
    cache.put(KEY, PLAN)
    (cache.folder / "secret").write_bytes(secret)
    after = PlanCache(cache.folder)
    assert after.get(KEY) is None
    after.put(KEY, PLAN)
    assert PlanCache(cache.folder).get(KEY) == PLAN


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    folder.chmod(0o770)
    cache = PlanCache(folder)
    assert "is open to others: mode 0770" in caplog.text
    cache.put(KEY, PLAN)
    assert _open(cache, b"anew") == (b"anew", False)
    assert cache.entries() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_trusts_nothing_in_a_folder_of_another_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PlanCache(tmp_path / "engine").put(KEY, PLAN)
    os.chown(tmp_path / "engine", 12345, 12345)
    assert PlanCache(tmp_path / "engine").get(KEY) is None
    assert "belongs to user 12345, not to the one that runs edgeasd" in caplog.text


@pytest.mark.parametrize("where", ["file/engine", "/proc/self/engine"])
def test_where_nothing_can_be_written_all_is_built_and_nothing_kept(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = PlanCache(tmp_path / where)
    assert "nothing that is built is kept" in caplog.text
    assert _open(cache, PLAN) == (PLAN, False)
    assert cache.clear() == 0


def test_a_disk_that_fills_up_costs_a_warning(
    cache: PlanCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    cache.put(KEY, PLAN)
    other = replace(KEY, precision="int8")
    monkeypatch.setattr(os, "fsync", full)
    assert _open(cache, b"new", key=other) == (b"new", False)
    assert "No space left on device" in caplog.text
    assert cache.get(other) is None
    assert cache.get(KEY) == PLAN


def _key(number: int) -> PlanKey:
    return replace(KEY, extra=str(number))


def _used_at(cache: PlanCache, key: PlanKey, utc_s: int) -> None:
    os.utime(cache._path(key), (utc_s, utc_s))


def test_the_longest_unused_go_when_there_are_too_many(cache: PlanCache) -> None:
    small = PlanCache(cache.folder, max_entries=2)
    for number in (1, 2):
        small.put(_key(number), PLAN)
        _used_at(small, _key(number), number)
    assert small.get(_key(1)) == PLAN  # now the latest used
    small.put(_key(3), PLAN)
    assert {entry.key.extra for entry in small.entries()} == {"1", "3"}


def test_the_longest_unused_go_when_they_are_too_large_and_what_never_fits_is_not_kept(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "engine", max_bytes=2500)
    for number in (1, 2, 3):
        cache.put(_key(number), bytes(500))
        _used_at(cache, _key(number), number)
    (cache.folder / "built" / ".left-by-a-killed-process").write_bytes(bytes(500))
    _used_at_file = cache.folder / "built" / ".left-by-a-killed-process"
    os.utime(_used_at_file, (0, 0))
    cache.put(_key(4), bytes(900))
    assert [entry.key.extra for entry in cache.entries()] == ["4", "3"]
    cache.put(_key(5), bytes(2500))
    assert [entry.key.extra for entry in cache.entries()] == ["4", "3"]
    assert not _used_at_file.exists()


def test_clearing_leaves_nothing_but_the_secret(cache: PlanCache) -> None:
    for number in range(3):
        cache.put(_key(number), PLAN)
    (cache.folder / "built" / ".half").touch()
    assert cache.clear() == 4
    assert cache.entries() == []
    cache.put(KEY, PLAN)
    assert cache.get(KEY) == PLAN
    cache.remove(KEY)
    assert cache.get(KEY) is None


def test_a_copied_folder_is_still_bound_to_its_keys(cache: PlanCache, tmp_path: Path) -> None:
    cache.put(KEY, PLAN)
    shutil.copytree(cache.folder, tmp_path / "copy")
    copied = PlanCache(tmp_path / "copy")
    assert copied.get(replace(KEY, device="Xavier")) is None
    assert copied.get(KEY) == PLAN
