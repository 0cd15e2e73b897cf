"""A torch program is read as arithmetic and raw numbers, or refused: nothing in it is unpickled, evaluated or run."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from edgeasd.bundle import Bundle, read_bundle
from edgeasd.engine import check_golden
from edgeasd.engine.program import ATEN_OPERATORS, read_program
from edgeasd.engine.torch import TorchEngine
from tests.programs import MODEL, SAMPLES, WEIGHTS, Json, Members, changed, nodes, packed, refusal, small_members
from tests.small_bundle import N_ROWS, small_program, write_full_bundle

PICKLE = b"cos\nsystem\n(S'touch /tmp/unpickled'\ntR."


@pytest.fixture
def members() -> Members:
    return small_members()


@pytest.fixture
def bundle(members: Members, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return read_bundle(write_full_bundle(tmp_path_factory.mktemp("b") / "small.edgeasd", program=packed(members)))


def test_what_is_computed_is_read(members: Members) -> None:
    program = read_program(packed(members))
    assert program.inputs == ("log_mel",)
    assert len(program.outputs) == 2
    assert [step.operator.removeprefix("torch.ops.aten.") for step in program.steps] == [
        "sub.Tensor", "square.default", "mean.dim", "mean.dim", "sum.dim_IntList", "div.Tensor",
    ]  # fmt: skip
    (centre,) = program.weights.values()
    assert centre.shape == (1, N_ROWS, 1)
    np.testing.assert_allclose(np.frombuffer(centre.data, np.float32), np.linspace(-40.0, -20.0, N_ROWS), rtol=1e-6)


def test_no_pickle_is_read_and_torch_is_not_asked_to_load(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    import sympy  # type: ignore[import-untyped]
    import torch

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("called on a node")

    for owner, name in (
        (torch, "load"),
        (torch.export, "load"),
        (pickle, "loads"),
        (pickle, "load"),
        (sympy, "sympify"),
    ):
        monkeypatch.setattr(owner, name, never)
    engine = TorchEngine(bundle)
    check_golden(engine, bundle.golden)
    engine.close()


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_torch_itself_reads_the_archive_too(members: Members) -> None:
    import torch

    module = torch.export.load(io.BytesIO(packed(members))).module()
    assert module(torch.zeros(2, N_ROWS, 5))[0].shape == (2,)


def test_every_operator_that_is_allowed_is_one_of_torch() -> None:
    import torch

    for name in ATEN_OPERATORS:
        *_, packet, overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        assert not schema.is_mutable, name


def test_the_same_model_gives_the_same_bytes(members: Members) -> None:
    assert small_program() == packed(members)


@pytest.mark.parametrize(
    "name",
    [
        "archive/data/weights/model.pt",  # what torch 2.8 wrote, pickled
        "archive/data/constants/custom_obj_0",
        "archive/data/aotinductor/model/model.so",
        "archive/extra/run.py",
        "archive/models/other.json",
        "archive/data/weights/weight_0/../../../../../etc/passwd",
        "../weight_1",
        "/archive/data/weights/weight_1",
        "archive/data/weights/weight_1\n",
        "archive/data/weights/weight_\u0661",
        "archive/version",
    ],
)
def test_a_member_that_is_not_known_is_refused(members: Members, name: str) -> None:
    assert "that is not known" in refusal(packed({**members, name: PICKLE}))


def test_sample_inputs_are_refused(members: Members) -> None:
    assert SAMPLES in refusal(packed({**members, SAMPLES: PICKLE}))


@pytest.mark.parametrize("spoilt", ["archive_format", "archive_version", "byteorder", ".data/version"])
def test_an_archive_of_another_kind_is_refused(members: Members, spoilt: str) -> None:
    name = f"archive/{spoilt}"
    assert name in refusal(packed({**members, name: b"big"}))
    assert f"lacks {name}" in refusal(packed({key: data for key, data in members.items() if key != name}))


def test_a_weight_that_is_pickled_is_refused(members: Members) -> None:
    def pickle_it(config: Json) -> None:
        (payload,) = config["config"].values()
        payload["use_pickle"] = True

    assert "use_pickle" in refusal(changed(members, WEIGHTS, pickle_it))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sizes": [{"as_int": 1}, {"as_int": 4096}, {"as_int": 1_000_000}]}, "C order"),  # 16 GB out of 32 bytes
        ({"strides": [{"as_int": 0}, {"as_int": 0}, {"as_int": 0}]}, "C order"),
        ({"sizes": [{"as_int": 1}, {"as_int": 9}, {"as_int": 1}],
          "strides": [{"as_int": 9}, {"as_int": 1}, {"as_int": 1}]}, "not as long as its shape"),
        ({"storage_offset": {"as_int": 1}}, "not as long as its shape"),
        ({"dtype": 5}, "not as long as its shape"),
        ({"dtype": 9}, "dtype"),
        ({"sizes": [{"as_int": -1}, {"as_int": 8}, {"as_int": 1}]}, "sizes"),
        ({"sizes": [{"as_expr": {"expr_str": "s0"}}, {"as_int": 8}, {"as_int": 1}]}, "sizes"),
    ],
    ids=["too many", "stride 0", "past the end", "offset", "longer elements", "complex", "negative", "a symbol"],
)  # fmt: skip
def test_a_weight_that_is_not_what_it_says_is_refused(members: Members, change: Json, reason: str) -> None:
    def change_it(config: Json) -> None:
        (payload,) = config["config"].values()
        payload["tensor_meta"].update(change)

    assert reason in refusal(changed(members, WEIGHTS, change_it))


@pytest.mark.parametrize("path", ["weight_1", "../constants/tensor_0", "../../models/model.json", "/etc/passwd"])
def test_a_weight_kept_elsewhere_is_refused(members: Members, path: str) -> None:
    def move(config: Json) -> None:
        (payload,) = config["config"].values()
        payload["path_name"] = path

    assert "lacks the weight" in refusal(changed(members, WEIGHTS, move))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.mylib.steal.default",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.relu_.default",
        "torch.ops.aten.rand.default",
        "torch.ops.higher_order.while_loop",
        "torch.ops.aten.sub.Tensor.__class__",
        "torch.hub.load",
        "torch.os.system",
        "_operator.methodcaller",
        "math.pow",
        "#edgeasd:anything",
        "",
    ],
)
def test_an_operator_that_is_not_allowed_is_refused(members: Members, target: str) -> None:
    message = refusal(changed(members, MODEL, lambda model: nodes(model)[0].update(target=target)))
    assert "not allowed" in message or "target" in message


@pytest.mark.parametrize(
    "argument",
    [
        {"as_custom_obj": {"name": "x", "class_fqn": "y"}},
        {"as_graph": {"name": "body", "graph": {}}},
        {"as_operator": "torch.os.system"},
        {"as_device": {"type": "cuda", "index": 7}},
        {"as_string": "__import__('os').system('touch /tmp/run')"},
        {"as_sym_int": {"as_name": "__import__('os').getcwd()"}},
        {"as_sym_int": {"as_expr": "s0"}},
        {"as_int": 1 << 40},
        {"as_int": 1, "as_float": 1.0},
        {"as_float": "nan"},
        {"as_ints": [0] * 33},
        {"as_tensor": {"name": "later"}},
        {},
    ],
    ids=lambda argument: next(iter(argument), "nothing"),
)
def test_an_argument_that_is_no_plain_value_is_refused(members: Members, argument: Json) -> None:
    refusal(changed(members, MODEL, lambda model: nodes(model)[0]["inputs"][1].update(arg=argument)))


def test_expressions_are_not_so_much_as_looked_at(members: Members, bundle: Bundle) -> None:
    hostile = {"as_expr": {"expr_str": "__import__('os')._exit(1)", "hint": None}}

    def spoil(model: Json) -> None:
        for meta in model["graph_module"]["graph"]["tensor_values"].values():
            meta["sizes"][0] = hostile
        model["guards_code"] = ["__import__('os')._exit(1)"]
        model["graph_module"]["module_call_graph"] = [{"fqn": "", "signature": {"in_spec": "os.system"}}]

    assert read_program(changed(members, MODEL, spoil)) == read_program(packed(members))


def test_what_a_program_uses_it_has_made_before_and_once(members: Members) -> None:
    def swap(model: Json) -> None:
        nodes(model).insert(0, nodes(model).pop(1))

    def repeat(model: Json) -> None:
        nodes(model).append(nodes(model)[0])

    assert "before it is made" in refusal(changed(members, MODEL, swap))
    assert "twice" in refusal(changed(members, MODEL, repeat))


def test_a_tensor_by_name_is_refused(members: Members) -> None:
    def name_it(model: Json) -> None:
        nodes(model)[0]["inputs"][1]["kind"] = 2

    assert "by name" in refusal(changed(members, MODEL, name_it))


def test_a_program_that_changes_what_it_is_given_is_refused(members: Members) -> None:
    def mutate(model: Json) -> None:
        specs = model["graph_module"]["signature"]["output_specs"]
        specs[0] = {"buffer_mutation": {"arg": {"name": "sub"}, "buffer_name": "centre"}}

    assert "buffer_mutation" in refusal(changed(members, MODEL, mutate))


def test_bombs_are_refused_before_they_go_off(members: Members) -> None:
    blank = json.dumps(nodes(json.loads(members[MODEL]))[0])
    many = members[MODEL].replace(b'"nodes":[', b'"nodes":[' + f"{blank},".encode() * 4096)
    deep = b"[" * 100_000
    assert "at most 4096 items" in refusal(packed({**members, MODEL: many}))
    assert "the limit is" in refusal(packed({**members, MODEL: bytes(5 << 20)}))
    refusal(packed({**members, MODEL: deep}))
    assert "compressed" in refusal(packed({**members, MODEL: bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED))
    assert "directory" in refusal(packed({f"archive/data/weights/weight_{i}": b"" for i in range(8_000)}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_can_be_read_in_two_ways_is_refused(members: Members) -> None:
    file = io.BytesIO(packed(members))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(MODEL, b"{}")
    assert "twice" in refusal(file.getvalue())
    assert "before or behind" in refusal(b"#!" + packed(members))
    for program in (b"", b"nonsense", packed(members)[:-5], packed(members) + bytes(3)):
        refusal(program)
