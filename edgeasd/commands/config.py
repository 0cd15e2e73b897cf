"""`edgeasd config`: write, show, check and describe settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeasd.commands.common import ConfigOption, JsonOption, print_json
from edgeasd.errors import CannotWriteError

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.command()
def init(
    file: Annotated[Path | None, typer.Argument(help="File to write; must not exist. Default: print it.")] = None,
) -> None:
    """Write a settings file that explains every setting and changes none."""
    from edgeasd.settings.document import example

    if file is None:
        print(example(), end="")
        return
    try:
        with file.open("x", encoding="utf-8") as output:
            output.write(example())
    except OSError as exc:
        raise CannotWriteError(f"{file}: {(exc.strerror or str(exc)).lower()}") from exc
    print(f"wrote {file}")


@app.command()
def show(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Print the settings in force and where each comes from; secrets stay hidden."""
    from edgeasd.settings import resolve_settings
    from edgeasd.settings.document import shown
    from edgeasd.settings.model import dump

    resolved = resolve_settings(config)
    if as_json:
        print_json(dump(resolved.settings))
    else:
        print(shown(resolved), end="")


@app.command()
def validate(
    file: Annotated[Path | None, typer.Argument(help="Settings file. Default: the one a node would read.")] = None,
) -> None:
    """Check settings as a node would read them, and say everything that is wrong (exit 78) or without effect."""
    from edgeasd.settings import InvalidSettingsError, resolve_settings, without_effect

    try:
        resolved = resolve_settings(file)
    except InvalidSettingsError as exc:
        for line in exc.lines[:-1]:
            print(f"edgeasd: {line}", file=sys.stderr)
        raise InvalidSettingsError(exc.lines[-1:]) from None
    for line in without_effect(resolved.settings):
        print(f"warning: {line}", file=sys.stderr)
    print(f"ok: {resolved.config or 'no settings file, defaults'}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a settings file, for editors and checks."""
    from edgeasd.settings.document import schema as text

    print(text(), end="")
