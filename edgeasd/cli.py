"""The `edgeasd` command: knows every subcommand by name, loads the one that is called, turns errors into exit codes.

Exit codes are those of `edgeasd.errors`; 2 is a usage error, 69 also a command whose extra is not installed, 130 an
interrupt, 1 anything nobody foresaw.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from edgeasd import __version__
from edgeasd.errors import EdgeasdError, UnavailableError


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand before it is loaded."""

    place: str
    """module:attribute, where the attribute is a function for typer or a typer.Typer."""
    help: str
    """The first line of its own help, known without loading it."""
    extra: str | None = None
    """The optional dependency it needs."""


COMMANDS = {
    "run": Command("edgeasd.commands.run:run", "Listen to microphones and publish scores and events."),
    "replay": Command(
        "edgeasd.commands.replay:replay", "Replay recordings through the very line that hears microphones."
    ),
    "calibrate": Command("edgeasd.commands.calibrate:calibrate", "Learn on site what a bundle's scores mean there."),
    "devices": Command("edgeasd.commands.devices:devices", "List sound cards and what each can do."),
    "check": Command("edgeasd.commands.check:check", "Check node, bundle, microphone and broker, with a fix for each."),
    "watch": Command("edgeasd.commands.watch:watch", "Watch what the nodes of a broker say, live."),
    "bundle": Command("edgeasd.commands.bundle:app", "Look into a bundle, verify, sign or install it."),
    "engine": Command("edgeasd.commands.engine:app", "Build, list, measure and clear what runs a bundle."),
    "config": Command("edgeasd.commands.config:app", "Write, show, check and describe settings."),
    "service": Command("edgeasd.commands.service:app", "Run the node under systemd: install, uninstall, status."),
    "version": Command("edgeasd.commands.version:version", "Print the version."),
    "train": Command(
        "edgeasd_train.commands.train:train", "Train a detector on recordings; gives a bundle.", extra="train"
    ),
    "corpus": Command("edgeasd_train.commands.corpus:corpus", "Print and draw what a corpus holds.", extra="train"),
    "evaluate": Command(
        "edgeasd_train.commands.evaluate:evaluate",
        "Judge a bundle on labelled clips or annotated recordings.",
        extra="train",
    ),
    "explore": Command(
        "edgeasd_train.commands.explore:explore", "Draw what a bundle hears as a page to explore.", extra="train"
    ),
}

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PROBE_OF_EXTRA = {"train": "torch"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in arguments if not word.startswith("-")), None)
    command = COMMANDS.get(name or "")
    try:
        # Small matrices: a thread pool a library costs more than it brings. Read when numpy is imported; torch's own
        # number of threads is for the recipe to say.
        for variable in _ONE_THREAD:
            os.environ.setdefault(variable, "1")
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else it reads the metadata of every package
        build_app(name)(args=arguments, prog_name="edgeasd")
    except EdgeasdError as exc:
        return _fail(exc)
    except ModuleNotFoundError as exc:
        if command is None or command.extra is None or (exc.name or "").startswith(("edgeasd.", "edgeasd_train.")):
            raise
        return _fail(_missing(name or "", command, exc))
    return 0


def build_app(wanted: str | None) -> typer.Typer:
    """Return the command line with the subcommand `wanted` loaded and the others listed."""
    app = typer.Typer(
        rich_markup_mode=None,  # plain help: rich would cost half the start
        pretty_exceptions_enable=False,
        add_completion=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, command in COMMANDS.items():
        if name == wanted:
            _mount(app, name, command)
        else:
            app.command(name, short_help=_listed(command))(_listed_only)
    return app


def load(command: Command) -> object:
    """Import a subcommand and return its function or typer.Typer."""
    module, _, attribute = command.place.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    return found


def _mount(app: typer.Typer, name: str, command: Command) -> None:
    loaded = load(command)
    if isinstance(loaded, typer.Typer):
        app.add_typer(loaded, name=name, help=command.help)
    else:
        assert callable(loaded)
        app.command(name)(loaded)


def _listed(command: Command) -> str:
    if command.extra is None or _installed(_PROBE_OF_EXTRA[command.extra]):
        return command.help
    return f"{command.help} Needs: pip install 'edgeasd[{command.extra}]'"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # an import hook that forbids it
        return False


def _listed_only() -> None:
    raise AssertionError("a subcommand was called that was not loaded")


def _missing(name: str, command: Command, exc: ModuleNotFoundError) -> UnavailableError:
    return UnavailableError(
        f"`edgeasd {name}` needs {exc.name}, which is not installed: pip install 'edgeasd[{command.extra}]'"
    )


def _fail(error: EdgeasdError) -> int:
    print(f"edgeasd: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


def _print_version(*, wanted: bool) -> None:
    if wanted:
        print(f"edgeasd {__version__}")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=lambda value: _print_version(wanted=value), is_eager=True)
    ] = False,
) -> None:
    """Listen on an edge node, learn what is normal there, and say over MQTT when a second of sound is not."""


if __name__ == "__main__":
    sys.exit(main())
