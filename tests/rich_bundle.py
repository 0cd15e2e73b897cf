"""A bundle that gives everything a bundle may give, and recordings to hear with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from onnx import TensorProto, helper

from edgeasd.bundle import Golden, write_bundle
from tests.conftest import MakeSoundscape
from tests.small_bundle import N_FRAMES, N_ROWS, SPEC, small_answers, small_graph, small_inputs, small_manifest

RATE_HZ = SPEC.sample_rate_hz
CENTRE_DB = np.linspace(-40.0, -20.0, N_ROWS, dtype=np.float32)
"""The reconstruction, whatever was heard."""
EVENTS = ((5.0, 6.0), (41.0, 41.5))
CARD = "# rich\n\n| | |\n|---|---|\n| made of | <b>paper</b> |\n\n- one\n- two\n"


def write_rich_bundle(path: Path) -> Path:
    """Write the small bundle with an embedding (the mean of each row) and a reconstruction (its centre) as well."""
    model = small_graph()
    graph = model.graph
    graph.node.append(helper.make_node("ReduceMean", ["log_mel", "axis_2"], ["embedding"], keepdims=0))
    graph.node.append(helper.make_node("Sub", ["log_mel", "normal"], ["reconstruction"]))
    for name, shape in (("embedding", [N_ROWS]), ("reconstruction", [N_ROWS, N_FRAMES])):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    log_mel = small_inputs(3, seed=7)
    centre = np.broadcast_to(CENTRE_DB[:, None], log_mel.shape)
    answers = {**small_answers(log_mel), "embedding": log_mel.mean(axis=2), "reconstruction": centre}
    outputs = ["score", "residual", "embedding", "reconstruction"]
    manifest = small_manifest().model_copy(update={"name": "rich", "outputs": outputs})
    golden = Golden({"log_mel": log_mel}, answers)
    write_bundle(path, manifest=manifest, model_onnx=model.SerializeToString(), golden=golden, card=CARD)
    return path


def write_hall(root: Path, make_soundscape: MakeSoundscape) -> Path:
    """Write two recordings of a hall, one of them with annotated events, the other beside a table of something else."""
    sound = make_soundscape(45.0, rate_hz=RATE_HZ, events=EVENTS)
    soundfile.write(root / "marked.wav", sound.samples, RATE_HZ)
    rows = "".join(f"{onset_s},{offset_s},rattle\n" for onset_s, offset_s in EVENTS)
    (root / "marked.csv").write_text("onset,offset,label\n" + rows)
    soundfile.write(root / "plain.flac", make_soundscape(20.0, seed=1, rate_hz=2 * RATE_HZ).samples, 2 * RATE_HZ)
    (root / "plain.csv").write_text("some,other,table\n1,2,3\n")
    return root
