"""Which bundle a node runs is decided by what was installed, what has run, and what was given up."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from edgeasd.bundle import read_bundle
from edgeasd.errors import BundleError, CannotWriteError, SelfTestError, TemporaryError, UnavailableError, UsageError
from edgeasd.models.choosing import Choice, Start, beginning, choose
from edgeasd.models.installing import install_bundle, wake_node
from edgeasd.models.store import MAX_STARTS, ModelStore
from edgeasd.publish.identity import StateLock
from edgeasd.settings import Settings
from edgeasd.signing import signature_path
from tests.rig.touchy import Signer
from tests.small_bundle import write_small_bundle


class Site:
    """A node's state directory and settings, and versions of its bundle."""

    def __init__(self, folder: Path) -> None:
        self.signer = Signer(folder / "signer")
        self.state_dir = folder / "state"
        self.store = ModelStore(self.state_dir)
        self.killed: list[AbstractContextManager[Start]] = []
        self.given: dict[str, Any] = {"trusted_keys_dir": self.signer.trusted, "state_dir": self.state_dir}

    @property
    def settings(self) -> Settings:
        return Settings(**self.given)

    def install(self, path: Path, *, allow_older: bool = False) -> None:
        install_bundle(self.settings, path, allow_older=allow_older)

    def choice(self) -> Choice:
        choice = choose(self.settings)
        assert choice is not None
        return choice

    def run(self, error: Exception | None = None) -> int:
        """Run the node until it ends, by `error` if one is given; return the version that ran."""
        with suppress(*(() if error is None else (type(error),))), beginning(self.settings, self.store) as start:
            version = version_of(start)
            if error is not None:
                raise error
        return version

    def crash(self) -> int:
        """Run the node and never come to its end, as if it were killed; return the version that ran."""
        self.killed.append(beginning(self.settings, self.store))
        return version_of(self.killed[-1].__enter__())


def version_of(start: Start) -> int:
    assert start.choice is not None
    return start.choice.bundle.manifest.version


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr("edgeasd.models.installing.side_test", lambda *args, **kwargs: None)  # it has a test of its own
    return Site(tmp_path)


def test_an_installed_bundle_wins_over_an_older_one_of_the_settings(site: Site) -> None:
    site.given["bundle"] = site.signer.make()
    assert (site.choice().origin, site.run()) == ("settings", 1)
    site.install(site.signer.make())
    choice = site.choice()
    assert (choice.origin, choice.bundle.manifest.version, site.run()) == ("installed", 2, 2)
    assert choice.bundle.path.is_relative_to(site.state_dir)
    site.given["bundle"] = site.signer.make()  # an operator who changes the settings instead
    assert (site.choice().origin, site.run()) == ("settings", 3)
    assert read_bundle(site.store.previous or Path()).manifest.version == 2  # there is something to go back to


def test_without_a_bundle_in_the_settings_the_installed_one_runs(site: Site) -> None:
    assert choose(site.settings) is None
    site.install(site.signer.make())
    assert site.choice().origin == "installed"


def test_another_model_than_that_of_the_settings_is_not_installed(site: Site, tmp_path: Path) -> None:
    site.given["bundle"] = write_small_bundle(tmp_path / "small.edgeasd")
    site.signer.sign(site.given["bundle"])
    other = site.signer.make(name="other")
    with pytest.raises(UsageError, match="is other, and the settings name small"):
        site.install(other)


def test_an_older_version_runs_only_when_the_operator_says_so(site: Site) -> None:
    first, second = site.signer.make(), site.signer.make()
    site.given["bundle"] = second
    site.run()
    with pytest.raises(BundleError, match="is version 1, and this node has run version 2; to go back: --allow-older"):
        site.install(first)
    site.given["bundle"] = first
    with pytest.raises(BundleError, match="edgeasd bundle install --allow-older"):
        site.run()
    site.given["bundle"] = second
    site.install(first, allow_older=True)
    assert [site.run(), site.run()] == [1, 1]  # though the settings still name the newer one
    site.install(second)
    assert site.run() == 2


def test_only_two_bundles_are_kept_and_nothing_half_written(site: Site) -> None:
    for _ in range(4):
        site.install(site.signer.make())
        (site.store.directory / ".new-left").mkdir()  # by a process that was killed
    site.install(site.signer.make())
    folders = {path.name for path in site.store.directory.iterdir() if path.is_dir() and not path.is_symlink()}
    assert folders == {path.parent.name for path in (site.store.current, site.store.previous) if path}
    assert len(folders) == 2


def test_two_installations_at_once_do_not_mix(site: Site) -> None:
    bundle = read_bundle(site.signer.make())
    site.store.install(bundle)
    with site.store._locked("install.lock", wait=False), pytest.raises(TemporaryError, match="is installing"):
        site.store.install(bundle)


def test_a_damaged_installed_bundle_gives_way_to_the_one_before(site: Site) -> None:
    for _ in range(2):
        site.install(site.signer.make())
        site.run()
    assert site.store.current is not None
    site.store.current.write_bytes(b"rubbish")
    choice = site.choice()
    assert (choice.origin, choice.bundle.manifest.version) == ("previous", 1)
    signature_path(choice.bundle.path).unlink()
    with pytest.raises(BundleError, match="is not a whole zip file"):
        site.choice()


def test_a_crash_loop_after_a_swap_ends_with_the_bundle_before(site: Site) -> None:
    for _ in range(2):
        site.install(site.signer.make())
    assert [site.crash(), site.crash()] == [2, 2]
    assert site.run() == 2  # a clean end takes only itself back
    assert [site.crash(), site.run(), site.run()] == [2, 1, 1]
    site.install(site.signer.make())
    assert [site.run(UnavailableError("the microphone hangs")) for _ in range(MAX_STARTS + 1)] == [3] * 4
    assert site.run(SelfTestError("not finite")) == 3
    assert site.run() == 1


def test_a_model_on_trial_that_fails_its_golden_test_ends_in_a_restart(site: Site) -> None:
    for _ in range(2):
        site.install(site.signer.make())
    says = "off by 1; the next start uses the model before"
    with pytest.raises(SelfTestError, match=says) as caught, beginning(site.settings, site.store):
        raise BundleError("off by 1")
    assert caught.value.exit_code == 70  # with 65 a supervisor would leave it at that
    assert site.run() == 1


def test_a_full_disk_leaves_what_was_installed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.install(site.signer.make())
    second = site.signer.make()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(CannotWriteError, match="No space left"):
            site.install(second)
    assert site.run() == 1
    site.install(second)
    assert site.run() == 2
    assert not list(site.store.directory.glob(".new-*"))


def test_starts_long_ago_and_a_model_that_has_proved_itself_do_not_count(site: Site) -> None:
    for _ in range(2):
        site.install(site.signer.make())
    bundle = site.choice().bundle
    for at_s in (100.0, 300.0, 700.0):
        site.store.count_start(bundle.sha256, now_utc_s=at_s)
    assert site.store.crash_loops(now_utc_s=701.0) is None
    assert site.store.crash_loops(now_utc_s=600.0) == bundle.sha256
    site.store.proven(bundle)
    assert site.store.crash_loops(now_utc_s=600.0) is None
    assert site.store.recall().highest == {"small": 2}


def test_a_memory_that_is_damaged_is_told_and_begun_anew(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.install(site.signer.make())
    (site.store.directory / "state.json").write_text('{"highest": {"small": "nan"}}')
    assert site.run() == 1
    assert "versions and trials are forgotten" in caplog.text


def test_a_node_is_told_only_if_it_holds_the_directory_and_listens(site: Site) -> None:
    site.state_dir.mkdir(mode=0o700)
    assert wake_node(site.state_dir) is None
    with StateLock(site.state_dir):
        assert wake_node(site.state_dir) is None  # SIGHUP would end this process
        told: list[int] = []
        before = signal.signal(signal.SIGHUP, lambda number, frame: told.append(number))
        try:
            assert wake_node(site.state_dir) == os.getpid()
            assert told == [signal.SIGHUP]
        finally:
            signal.signal(signal.SIGHUP, before)
    (site.state_dir / "lock").write_text("1\n")  # the number of a process that has nothing to do with it
    assert wake_node(site.state_dir) is None
