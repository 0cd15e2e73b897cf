"""`edgeasd bundle`: look into a bundle, verify, sign and install it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgeasd.commands.common import ConfigOption, JsonOption, print_json

if TYPE_CHECKING:
    from edgeasd.bundle import Bundle
    from edgeasd.engine import EngineKind, PrecisionWish
    from edgeasd.settings import Settings
    from edgeasd.signing import Trust

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)

BundleArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, NAME.edgeasd.")]


@app.command()
def info(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A bundle. Default: the one to run here.")] = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Print what a bundle says of itself, or which one this node runs and why; digests are checked, nothing is run."""
    from edgeasd.bundle import read_bundle

    node = {} if file is not None else _node_facts(config)
    bundle = read_bundle(file) if file is not None else node.pop("bundle")
    facts = ({} if bundle is None else _facts(bundle)) | node
    if as_json:
        print_json(facts | ({} if bundle is None else {"manifest": bundle.manifest.model_dump(mode="json")}))
        return
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):<14} {value}")
    if bundle is not None:
        print(f"\n{bundle.card.strip()}")


@app.command()
def verify(file: BundleArgument, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Verify signature, digests, graph and golden test, as a node does before it runs a bundle (exit 65 if not)."""
    from edgeasd.bundle import read_bundle
    from edgeasd.engine import open_engine
    from edgeasd.models.choosing import trust_of
    from edgeasd.settings import load_settings

    trust = trust_of(load_settings(config))
    bundle = read_bundle(file, trust=trust)
    engine = open_engine(bundle, "onnx")
    windows = len(bundle.golden.outputs["score"])
    name = engine.name
    engine.close()
    signed = _signed(bundle, trust)
    if as_json:
        print_json({"ok": True, "engine": name, "golden_windows": windows, "signed": signed} | _facts(bundle))
    else:
        print(f"ok: {file}: digests, graph, and golden test on {windows} windows by the {name} engine; {signed}")


@app.command()
def keygen(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="Private key to make; the public one is beside it.")],
) -> None:
    """Make a key pair to sign bundles with: KEY, which stays with you, and NAME.pub for the nodes."""
    from edgeasd.signing import generate_key

    public, key_id = generate_key(key)
    print(f"private key {key}: keep it off the nodes\npublic key  {public}, id {key_id}: put it in trusted_keys_dir")


@app.command()
def sign(
    file: BundleArgument,
    *,
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="Private key, as `bundle keygen` makes it.")],
) -> None:
    """Sign a bundle: writes FILE.sig beside it."""
    from edgeasd.bundle import read_bundle
    from edgeasd.disk import replace_file
    from edgeasd.signing import parse_signature, signature_path
    from edgeasd.signing import sign as sign_digest

    bundle = read_bundle(file)  # nobody means to vouch for what no node would take
    signature = sign_digest(bytes.fromhex(bundle.sha256), key)
    replace_file(signature_path(file), signature)
    print(f"{signature_path(file)}: signed by key {parse_signature(signature).key_id}")


@app.command()
def install(
    file: BundleArgument,
    config: ConfigOption = None,
    *,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Install it though this node has run a newer version.")
    ] = False,
) -> None:
    """Install a bundle on this node: verified, tried in a process of its own, then taken up by the node that runs."""
    from edgeasd.models.installing import install_bundle, wake_node
    from edgeasd.settings import load_settings

    settings = load_settings(config)
    installed = install_bundle(settings, file, allow_older=allow_older)
    print(f"installed {installed.manifest.name} version {installed.manifest.version} ({installed.sha256[:12]})")
    pid = wake_node(settings.state_dir)
    print("it is used from the next start" if pid is None else f"process {pid} was told; its log says what comes of it")


@app.command("try", hidden=True)
def try_bundle(
    file: BundleArgument, *, engine: str = "auto", precision: str = "fp32", cache_dir: Path | None = None
) -> None:
    """Run the golden test within limits on memory and time; what `bundle install` and a node start for a new bundle."""
    from edgeasd.bundle import read_bundle
    from edgeasd.engine import open_engine
    from edgeasd.models.sidetest import limit_this_process

    kind = cast("EngineKind", engine)
    limit_this_process(file, engine=kind)
    bundle = read_bundle(file)
    open_engine(bundle, kind, precision=cast("PrecisionWish", precision), cache_dir=cache_dir).close()
    print(bundle.sha256)


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "detector": manifest.detector,
        "sha256": bundle.sha256,
        "sample_rate": f"{manifest.sample_rate_hz} Hz",
        "window": f"{manifest.window_frames / manifest.sample_rate_hz:g} s",
        "outputs": ", ".join(manifest.outputs),
        "precisions": ", ".join(bundle.precisions),
    }


def _node_facts(config: Path | None) -> dict[str, Any]:
    from edgeasd.models.choosing import choose, trust_of
    from edgeasd.models.store import ModelStore
    from edgeasd.settings import load_settings

    settings = load_settings(config)
    store, choice = ModelStore(settings.state_dir), choose(settings)
    if choice is None:
        return {"bundle": None, "runs": "no bundle: the untrained second opinion judges alone"}
    return {
        "bundle": choice.bundle,
        "runs": f"from {choice.bundle.path}: {choice.why}",
        "signed": _signed(choice.bundle, trust_of(settings)),
        "before_it": _version_of(store.previous, settings),
    }


def _version_of(path: Path | None, settings: Settings) -> str:
    from edgeasd.bundle import read_bundle
    from edgeasd.errors import BundleError
    from edgeasd.models.choosing import trust_of

    if path is None:
        return "none"
    try:
        manifest = read_bundle(path, trust=trust_of(settings)).manifest
    except BundleError as exc:
        return str(exc)
    return f"{manifest.name} version {manifest.version}"


def _signed(bundle: Bundle, trust: Trust | None) -> str:
    from edgeasd.signing import parse_signature, read_signature

    if trust is not None:
        return f"signed by {bundle.signed_by}"
    signature = read_signature(bundle.path)
    if signature is None:
        return "not signed"
    return f"signed by key {parse_signature(signature).key_id}, not verified: no keys are trusted here"
