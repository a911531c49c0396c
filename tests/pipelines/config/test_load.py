"""Sources, keys, groups and the `[pipeline]` table: what they become, and every error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.backends.base import Backend, BatchRange, Context, Params
from penstock.backends.errors import ConfigError
from penstock.backends.expressions import registry
from penstock.backends.expressions.registry import register_backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.params import EngineParams
from penstock.pipelines.config.load import PipelineConfig, Port, load
from penstock.pipelines.directory import read_directory

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NO_INTEGER = "expected a whole number"


class ScaleParams(Params):
    factor: int = 2
    label: str = ""


class Scale(Backend):
    parameters = ScaleParams


class Shift(Backend):
    class parameters(Params):
        offset: int = 0
        factor: int = 1


class Four(Backend):
    parameters = Params
    min, max = 2, 4


class Anything(Backend):
    pass


class Free(Backend):
    parameters = None


@pytest.fixture(autouse=True)
def _backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    for cls in (Scale, Shift, Four, Anything, Free):
        register_backend(cls.__name__, cls)


def params(config: PipelineConfig, node: str = "main", group: int = 0) -> Any:
    return config.nodes[node].instance_groups[group].spec.params


def member(spec: Spec, *path: int) -> Any:
    for index in path:
        spec = spec.children[index]
    return spec.params


def problems(source: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return [str(problem) for problem in caught.value.problems]


def problem(source: Any) -> str:
    """Return the one problem that `source` has."""
    (text,) = problems(source)
    return text


def write(directory: Path, text: str, name: str = "p.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


# Sources


def test_an_expression() -> None:
    config = load("Scale(factor=3)")
    assert (config.name, list(config.nodes), params(config).factor) == ("pipeline", ["main"], 3)


def test_a_flat_dict() -> None:
    config = load({"backend": "Scale", "factor": "3", "max": "4"}, name="mine")
    assert (config.name, params(config).factor, config.nodes["main"].instance_groups[0].max) == (
        "mine",
        3,
        4,
    )


def test_a_dict_of_dicts_is_ordered_root_to_leaf() -> None:
    config = load(
        {
            "c": {"backend": "Scale"},
            "a": {"backend": "Scale", "next": "b"},
            "b": {"backend": "Scale", "next": "c"},
        }
    )
    assert list(config.nodes) == ["a", "b", "c"]
    assert config.nodes["a"].next == ("b",)


def test_a_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, 'backend = "Scale"', "mine.toml"))
    assert (config.name, config.directory, config.source) == (
        "mine",
        tmp_path,
        str(tmp_path / "mine.toml"),
    )
    assert load(str(tmp_path / "mine.toml")) == config
    assert load(tmp_path / "mine.toml", name="other").name == "other"


@pytest.mark.parametrize("source", [None, 3, ["Scale"], b"Scale"])
def test_a_source_of_another_type_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError, match="found"):
        load(source)


@pytest.mark.parametrize("source", ["", " ", {}])
def test_empty_is_an_error(source: Any) -> None:
    assert "empty" in problem(source)


def test_an_empty_file_and_one_without_nodes(tmp_path: Path) -> None:
    assert problem(write(tmp_path, "# nothing")).startswith(
        f"{tmp_path}/p.toml: the configuration is empty"
    )
    assert "is 'bakend' a misspelling of it?" in problem(write(tmp_path, 'bakend = "Scale"'))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    write(tmp_path, 'backend = "Scale"', "resnet.toml")
    assert "no such file, did you mean 'resnet.toml'?" in problem(tmp_path / "resnett.toml")
    assert "this is a directory" in problem(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"')
    assert "not valid UTF-8 (byte 5)" in problem(tmp_path / "latin.toml")
    assert "(at line 2, column 3)" in problem(write(tmp_path, "\na b = 3"))


def test_a_directory(tmp_path: Path) -> None:
    write(tmp_path, 'backend = "Scale"', "a.toml")
    write(tmp_path, 'backend = "Scale"\n[pipeline]\nname = "bee"', "b.toml")
    write(tmp_path, "no toml", "notes.txt")
    assert sorted(config.name for config in read_directory(tmp_path).configs) == ["a", "bee"]
    write(tmp_path, 'backend = "Scales"', "c.toml")
    write(tmp_path, "oops", "d.toml")
    write(tmp_path, 'backend = "Scale"\n[pipeline]\nname = "a"', "e.toml")
    found = read_directory(tmp_path)
    assert sorted(config.name for config in found.configs) == ["a", "bee"]
    assert [Path(problem.file).name for problem in found.problems] == [
        "c.toml",
        "d.toml",
        "e.toml",
    ]
    with pytest.raises(ConfigError, match="no such directory"):
        read_directory(tmp_path / "nowhere")


# Keys


def test_nearest_wins() -> None:
    def factor(node: dict[str, Any], **defaults: Any) -> int:
        return int(params(load({"n": node, **defaults}), "n").factor)

    assert factor({"backend": "Scale"}) == 2
    assert factor({"backend": "Scale"}, factor=3) == 3
    assert factor({"backend": "Scale", "factor": 4}, factor=3) == 4
    assert factor({"backend": "Scale", "factor": 4}, **{"Scale::factor": 3}) == 4
    assert factor({"backend": "Scale", "factor": 4, "Scale::factor": 5}, factor=3) == 5
    assert factor({"backend": "Scale(factor=6)", "factor": 4, "Scale::factor": 5}, factor=3) == 6


def test_global_table_is_the_same_as_top_level() -> None:
    config = load({"global": {"factor": 3, "instance_num": 2}, "n": {"backend": "Scale"}})
    assert (params(config, "n").factor, config.nodes["n"].instance_groups[0].instances) == (3, 2)


def test_a_key_reaches_every_member_that_declares_it_and_an_address_only_one() -> None:
    config = load({"backend": "S[Scale,Shift]", "factor": 3, "offset": 1})
    spec = config.nodes["main"].instance_groups[0].spec
    assert (member(spec, 0).factor, member(spec, 1).factor, member(spec, 1).offset) == (3, 3, 1)
    spec = (
        load({"backend": "S[Scale,Shift]", "factor": 3, "Shift::factor": 4})
        .nodes["main"]
        .instance_groups[0]
        .spec
    )
    assert (member(spec, 0).factor, member(spec, 1).factor) == (3, 4)


def test_positional_arguments_follow_the_declaration() -> None:
    assert params(load("Scale(3,x)")) == ScaleParams.model_validate({"factor": 3, "label": "x"})
    assert "takes at most 2 arguments, found 3" in problem("Scale(1,2,3)")
    assert "Identity takes no arguments, found 1" in problem("Identity(1)")
    assert (
        problem("Python[op2.py]")
        == "[main] backend: Python[op2.py] names no class: expected Python[op2.py:Class]"
    )
    assert "factor of Scale is given twice" in problem("Scale(1,factor=2)")
    assert "Scale has no parameter 'facter', did you mean 'factor'" in problem("Scale(facter=2)")


def test_strings_of_engines_stay_strings() -> None:
    config = load(
        {"backend": "TensorrtTensor", "model": "m", "min": "1x3x224x224", "max": "4x3x224x224"}
    )
    group = config.nodes["main"].instance_groups[0]
    assert (group.min, group.max, group.spec.params.max) == (1, 4, "4x3x224x224")
    assert group.spec.declared_range == (1, 4)
    group = (
        load({"backend": "TensorrtTensor", "model": "m", "min": "2x3;1x3", "max": "2x3;8x3"})
        .nodes["main"]
        .instance_groups[0]
    )
    assert (group.min, group.max) == (1, 8)


def test_a_backend_that_declares_no_parameters_gets_the_keys_that_no_other_declares() -> None:
    spec = (
        load(
            {
                "backend": "S[Scale,Anything]",
                "factor": 3,
                "other": "x",
                "Anything::factor": 5,
                "max": 4,
            }
        )
        .nodes["main"]
        .instance_groups[0]
        .spec
    )
    assert member(spec, 0).factor == 3
    assert member(spec, 1) == {"other": "x", "factor": 5}


def test_unknown_keys_name_node_key_and_the_nearest() -> None:
    assert problem({"n": {"backend": "Scale", "facter": 3}}) == (
        "[n] facter: this is neither a key of a node nor a parameter of Scale, "
        "did you mean 'factor'?"
    )
    assert "did you mean 'instance_num'" in problem({"backend": "Scale", "instance_nums": 3})
    assert "Scale has no parameter 'facter', did you mean 'factor'" in problem(
        {"backend": "Scale", "Scale::facter": 3}
    )
    assert "did you mean 'Scale::factor'" in problem({"backend": "Scale", "Scael::factor": 3})
    assert (
        problem({"facter": 3, "n": {"backend": "Scale"}})
        == "facter: no node knows this key, did you mean 'factor'?"
    )


def test_a_default_must_be_known_to_one_node_only() -> None:
    assert (
        params(
            load({"offset": 3, "a": {"backend": "Scale", "next": "b"}, "b": {"backend": "Shift"}}),
            "b",
        ).offset
        == 3
    )


def test_values_are_validated() -> None:
    assert "[main] factor: found 'many': expected a whole number" in problem(
        {"backend": "Scale", "factor": "many"}
    )
    assert "[main] Scale::factor: found 'many'" in problem(
        {"backend": "Scale", "Scale::factor": "many"}
    )
    assert "[main] instance_num: found 0: input should be greater" in problem(
        {"backend": "Scale", "instance_num": 0}
    )
    assert "[main] instance_num: found 1025: input should be less" in problem(
        {"backend": "Scale", "instance_num": 1025}
    )
    assert "[main] resize_w: ResizeMat needs resize_w" in problem(
        {"backend": "ResizeMat", "resize_h": 4}
    )


def test_keys_of_the_node() -> None:
    keys = {
        "batching_timeout": "2.5",
        "priority_levels": 4,
        "default_priority": 3,
        "retry": False,
        "stuck_after": 5,
    }
    node = load({"backend": "Scale", **keys}).nodes["main"]
    assert (
        node.batching_timeout,
        node.priority_levels,
        node.default_priority,
        node.retry,
        node.stuck_after,
    ) == (2.5, 4, 3, False, 5.0)
    assert load({"backend": "Scale", "priority_levels": 5}).nodes["main"].default_priority == 3
    assert "found 5, expected 1 to 4 (priority_levels = 4)" in problem(
        {"backend": "Scale", "priority_levels": 4, "default_priority": 5}
    )
    assert "found 5, expected 1 (priority_levels = 1)" in problem(
        {"backend": "Scale", "priority_levels": 1, "default_priority": 5}
    )
    assert "expected priority_levels" in problem({"backend": "Scale", "default_priority": 1})


def test_without_a_node_the_pipeline_table_is_checked_too() -> None:
    assert problems({"pipeline": {"nme": "x"}, "max": 3}) == [
        "[pipeline] nme: there is no key 'nme' here, did you mean 'name'?",
        "no node: expected a table with the key `backend`",
    ]


@pytest.mark.parametrize("key", ["name", "version"])
def test_names_and_versions_have_few_characters(key: str) -> None:
    assert (
        problem({"pipeline": {key: "a b"}, "a": {"backend": "Scale"}})
        == f"[pipeline] {key}: found 'a b': expected letters, digits, _ . -"
    )


def test_names_that_can_not_be_inputs() -> None:
    assert (
        problem({"pipeline": {"inputs": {"result": {}}}, "a": {"backend": "Scale"}})
        == "[pipeline] inputs.result: 'result' can't be an input: Penstock uses this name itself; "
        "expected another name"
    )


def test_interpreter_and_macros_of_torchpipe() -> None:
    config = load(
        {
            "Interpreter::backend": "PipelineV3",
            "n": {"backend": "Anything", "key": "TASK_RESULT_KEY"},
        }
    )
    assert params(config, "n") == {"key": "result"}
    assert not config.loop
    for name in ("Ring", "EventLoop"):
        assert load({"Interpreter::backend": name, "n": {"backend": "Scale"}}).loop
    assert "expected 'PipelineV3', 'Ring' or 'EventLoop'" in problem(
        {"Interpreter::backend": "Pipe", "n": {"backend": "Scale"}}
    )


# Groups


def test_ampersands_make_groups() -> None:
    keys = {
        "backend": "TensorrtTensor",
        "model": "b1.onnx&b4.onnx",
        "max": "1&4",
        "instance_num": "2&3",
        "precision": "fp16",
    }
    groups = load(keys).nodes["main"].instance_groups
    assert [
        (group.spec.params.model, group.max, group.instances, group.spec.params.precision)
        for group in groups
    ] == [
        ("b1.onnx", 1, 2, "fp16"),
        ("b4.onnx", 4, 3, "fp16"),
    ]
    assert [group.spec.declared_range for group in groups] == [(1, 1), (1, 4)]


def test_one_value_beside_groups_holds_for_each() -> None:
    groups = load({"backend": "Scale", "factor": "1&2", "max": 4}).nodes["main"].instance_groups
    assert [(group.spec.params.factor, group.max) for group in groups] == [(1, 4), (2, 4)]


def test_groups_that_do_not_agree() -> None:
    assert "factor has 2, max has 3" in problem(
        {"backend": "Scale", "factor": "1&2", "max": "1&2&3"}
    )
    assert "an empty piece beside &" in problem({"backend": "Scale", "factor": "1&"})


def test_groups_of_a_default_that_the_node_overrides_do_not_count() -> None:
    config = load({"factor": "1&2", "n": {"backend": "Scale", "factor": "1&2&3"}})
    groups = config.nodes["n"].instance_groups
    assert [group.spec.params.factor for group in groups] == [1, 2, 3]


def test_an_ampersand_in_an_argument_is_text() -> None:
    assert params(load("Scale(label='a&b')")).label == "a&b"


# Ranges


def test_a_nodes_max_above_its_backends() -> None:
    assert (
        problem({"backend": "Four", "max": 8})
        == "[main] max: 8 is more than the backend takes: Four has the range [2, 4]"
    )
    assert "1 is less than the backend takes" in problem({"backend": "Four", "max": 1})
    assert "5 is more than the backend takes" in problem({"backend": "Four", "min": 5})
    assert "min is 3 and max is 2" in problem({"backend": "Scale", "min": 3, "max": 2})


@pytest.mark.parametrize("most", [8, "8x4", "2x4,2x1"])
def test_max_may_stay_beside_batched_false(most: Any) -> None:
    """The warning of an engine that runs items alone says to write it."""

    class Engine(Backend):
        parameters = EngineParams

        @classmethod
        def declared_range(cls, params: Any, children: Any) -> BatchRange:
            given: BatchRange = params.declared_range()
            return given

    register_backend("Engine", Engine)
    node = {"backend": "Engine", "model": "net.onnx", "max": most, "batched": False}
    (group,) = load({"n": node}).nodes["n"].instance_groups
    assert group.max == 1
    assert group.spec.params.max == str(most)


def test_a_global_max_only_caps() -> None:
    group = load({"max": 8, "n": {"backend": "Four"}}).nodes["n"].instance_groups[0]
    assert group.bound(4) == 4


def test_a_sequential_without_a_common_range_is_an_error() -> None:
    class Eight(Backend):
        parameters = Params
        min, max = 8, 8

    register_backend("Eight", Eight)
    assert "[main] backend: the members of the Sequential share no batch size" in problem(
        "S[Four,Eight]"
    )
    (group,) = load("S[DecodeMat,Four]").nodes["main"].instance_groups
    assert group.spec.declared_range == BatchRange(2, 4)


# Expressions


def test_problems_of_expressions() -> None:
    assert problem("S[Scale").startswith("[main] backend: at character 8")
    assert "did you mean 'Scale'" in problem("Scael")
    assert (
        problem("S[Scale,(orr)Shift]")
        == "[main] backend: (orr)Shift: there is no filter 'orr', did you mean 'or'?"
    )
    assert "Scale takes none in brackets, found 1" in problem("Scale[Shift]")
    assert "SyncTensor takes 0 to 1 in brackets, found 2" in problem("SyncTensor[Scale,Shift]")
    assert "Torch takes 1 in brackets, found 0" in problem("Torch")
    assert "Python needs a name" in problem("Python")


def test_problems_of_arguments_name_backend_and_parameter() -> None:
    assert problems({"a": {"backend": "S[DecodeMat,ResizeMat(0,wide),Sleep(time=-1)]"}}) == [
        "[a] backend: ResizeMat's resize_h: found '0': input should be greater than or equal to 1",
        f"[a] backend: ResizeMat's resize_w: found 'wide': {NO_INTEGER}",
        "[a] backend: Sleep's time: found '-1': input should be greater than or equal to 0",
    ]


def test_ranges_say_how_they_are_written() -> None:
    expected = 'expected two numbers, min,max, as in "1,8"'
    assert (
        problem("Identity(force_range=3)")
        == f"[main] backend: Identity's force_range: found '3': {expected}"
    )
    assert (
        problem({"backend": "Identity", "force_range": 3})
        == f"[main] force_range: found 3: {expected}"
    )
    assert (
        problem({"backend": "Identity", "force_range": "1,2,3"})
        == f"[main] force_range: found '1,2,3': {expected}"
    )
    assert (
        problem({"backend": "Identity", "force_range": "4,2"})
        == "[main] force_range: found '4,2': expected min,max with 1 <= min <= max"
    )
    assert problems("Range(1,3)[Identity]") == [
        "[main] backend: Range takes at most 1 argument, found 2",
        f"[main] backend: Range's range: found '1': {expected}",
    ]
    assert "[main] backend: Free's force_range: found 3: expected min,max" in problem(
        {"backend": "Free", "force_range": 3}
    )


def test_python_names_a_registered_backend() -> None:
    config = load({"backend": "Python[Scale]", "Scale::factor": 4})
    assert config.nodes["main"].instance_groups[0].spec.cls is Scale
    assert params(config).factor == 4


def test_python_from_a_file_beside_the_toml(tmp_path: Path) -> None:
    code = """
class Add:
    def init(self, params):
        self.n = params["n"]

    def forward(self, batch):
        for item in batch:
            item["result"] = item["data"] + self.n
"""
    write(tmp_path, code, "ops.py")
    config = load(write(tmp_path, 'backend = "S[Python[ops.py:Add],Identity]"\n"Add::n" = 3'))
    (group,) = config.nodes["main"].instance_groups
    backend = group.spec.create(Context(directory=config.directory))
    item: Item = {"data": 1}
    backend.forward([item])
    assert item["result"] == 4
    assert "has no 'Ad', did you mean 'Add'" in problem(
        write(tmp_path, 'backend = "Python[ops.py:Ad]"')
    )


# Graph


def test_problems_of_the_graph() -> None:
    def graph(**following: Any) -> dict[str, Any]:
        return {
            name: {"backend": "Scale", **({"next": value} if value is not None else {})}
            for name, value in following.items()
        }

    assert (
        problem(graph(one="twoo", two=None))
        == "[one] next: there is no node 'twoo', did you mean 'two'?"
    )
    assert "an empty piece in 'two,'" in problem(graph(one="two,", two=None))
    assert "'two' is named twice" in problem(graph(one="two,two", two=None))
    assert "expected the name of a node, found 3" in problem(graph(one=3))
    assert "in a circle: one -> one" in problem(graph(one="one"))
    assert "in a circle: b -> c -> b" in problem(graph(a="b", b="c", c="b"))
    assert list(load(graph(a=["b"], b=None)).nodes) == ["a", "b"]


def test_one_mistake_hides_no_other() -> None:
    texts = problems(
        {
            "a": {"backend": "Scale", "next": "x"},
            "b": {"backend": "Scale", "next": "c"},
            "c": {"backend": "Scale", "next": "b"},
            "d": {"backend": "S[", "instance_num": 0, "max": "many", "next": "e,f"},
            "e": {
                "backend": "OnnxTensor",
                "model": "m.onnx",
                "min": 5,
                "max": 2,
                "next": "g",
                "map": "d[result]",
            },
            "f": {"backend": "Scale", "next": "g", "filter": "orr"},
            "g": {"backend": "Jump", "jump": "h"},
            "h": {"backend": "Scale", "map": "c[result:data]"},
        }
    )
    assert [text for text in texts if not text.startswith("[d] backend")] == [
        "[a] next: there is no node 'x'",
        "[b] next: the nodes run in a circle: b -> c -> b",
        f"[d] max: found 'many': {NO_INTEGER}",
        "[d] instance_num: found 0: input should be greater than or equal to 1",
        "[e] map: at character 9 of the map: expected ':', as in result:data, found ']'\n"
        "    d[result]\n            ^",
        "[e] min: min is 5 and max is 2: min can't be the greater",
        "[f] filter: there is no filter 'orr', did you mean 'or'?",
        "[g] map: several nodes lead here (e, f): expected a map that says what to take from each, "
        "as in e[result:data],f[result:f]",
        "[h] map: nothing comes before this node, so it can't have a map",
    ]
    assert len(texts) == 10


def test_a_wrong_value_hides_no_problem_that_does_not_depend_on_it() -> None:
    assert problems(
        {
            "pipeline": {"timeout": -1, "entry": "bb", "inputs": {"a": {"kind": "x"}, "_b": {}}},
            "b": {"backend": "Scale"},
        }
    ) == [
        "[pipeline] inputs.a.kind: found 'x': input should be 'image', 'bytes', 'text', "
        "'integer', 'number', 'boolean', 'tensor', 'json' or 'list'",
        "[pipeline] timeout: found -1: input should be greater than 0",
        "[pipeline] inputs._b: '_b' can't be an input: names that start with _ never come from a "
        "client; expected another name",
        "[pipeline] entry: there is no node 'bb', did you mean 'b'?",
    ]
    assert problems(
        {
            "pipeline": 3,
            "b": {
                "backend": "Four",
                "max": 8,
                "instance_num": 0,
                "retry": "no?",
                "default_priority": 2,
            },
        }
    ) == [
        "[pipeline]: expected a table, found 3",
        "[b] instance_num: found 0: input should be greater than or equal to 1",
        "[b] max: 8 is more than the backend takes: Four has the range [2, 4]",
        "[b] retry: found 'no?': input should be a valid boolean, unable to interpret input",
        "[b] default_priority: found 2, expected priority_levels, without which there are no "
        "priorities",
    ]
    assert problems({"backend": "Scale", "priority_levels": -1, "default_priority": 2}) == [
        "[main] priority_levels: found -1: input should be greater than or equal to 0"
    ]
    groups = {
        "backend": "Scale",
        "factor": "x&2",
        "instance_num": "0&0",
        "min": "1&5",
        "max": "4&2",
    }
    assert problems(groups) == [
        f"[main] factor: found 'x': {NO_INTEGER}",
        "[main] instance_num: found '0': input should be greater than or equal to 1",
        "[main] min: min is 5 and max is 2: min can't be the greater",
    ]


@pytest.mark.parametrize("jumper", ["Jump", "MapReduce"])
def test_a_wrong_value_does_not_hide_the_target_of_a_jump(jumper: str) -> None:
    tables: dict[str, dict[str, Any]] = {
        "a": {"backend": "Scale", "next": "b"},
        "b": {"backend": "Scale"},
        "j": {"backend": jumper, "jump": "b"},
    }
    tables["j"] |= {"instance_num": 0} if jumper == "Jump" else {"merge": " , "}
    first, second = problems(tables)
    assert first.startswith(
        "[j] instance_num"
        if jumper == "Jump"
        else "[j] merge: found ' , ': expected at least one key"
    )
    assert second == "[j] jump: expected a root, found 'b', which comes after 'a'"


def test_a_wrong_value_elsewhere_does_not_hide_problems_of_streams() -> None:
    async def pages(item: Item, call: Any) -> Any:
        yield 1

    register_backend("Pages", pages)
    tables = {
        "a": {"backend": "Pages", "next": "b"},
        "b": {"backend": "Pages"},
        "c": {"backend": "Scale", "instance_num": 0},
    }
    assert problems(tables) == [
        "[b]: node 'a' yields several results too: only one node of a graph may",
        "[c] instance_num: found 0: input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("file", "name"),
    [("my file", "my_file"), ("a?#%b", "a___b"), ("-x", "_x"), (".x.v2-a", "_x.v2-a"), ("ä", "_")],
)
def test_a_pipelines_name_from_its_file_fits_in_a_url(tmp_path: Path, file: str, name: str) -> None:
    path = tmp_path / f"{file}.toml"
    path.write_text('[a]\nbackend = "Scale"\n')
    assert load(path).name == name


def test_names_of_nodes(tmp_path: Path) -> None:
    assert "reserved" in problem({"data": {"backend": "Scale"}})
    assert "reserved" in problem({"_a": {"backend": "Scale"}})
    assert "letters, digits" in problem({"a b": {"backend": "Scale"}})
    assert "[rec.2]: it is a logical node of 'rec', but there is no node 'rec'" in problem(
        write(tmp_path, '[rec.2]\nbackend = "Scale"')
    )


# [pipeline]


def test_the_pipeline_table(tmp_path: Path) -> None:
    text = """
    backend = "Scale"
    [pipeline]
    name = "digits"
    version = 3
    description = "Reads digits."
    max_requests = 64
    timeout = 2.5
    loop = true
    max_rounds = 3
    [pipeline.inputs]
    data = {kind = "tensor", dtype = "uint8", shape = [-1, 8, 8]}
    [pipeline.outputs]
    label = {kind = "text", labels = "labels.txt", description = "The digit."}
    """
    (tmp_path / "labels.txt").write_text("zero\none\n")
    config = load(write(tmp_path, text))
    assert (
        config.name,
        config.version,
        config.description,
        config.max_requests,
        config.timeout,
    ) == (
        "digits",
        "3",
        "Reads digits.",
        64,
        2.5,
    )
    assert (config.loop, config.max_rounds, config.entry, config.warnings) == (True, 3, None, ())
    assert config.inputs == (Port("data", "tensor", "uint8", (-1, 8, 8)),)
    assert config.outputs == (Port("label", "text", labels="labels.txt", description="The digit."),)
    assert config.outputs[0].label_texts == ("zero", "one")


NO_FILE = "can't be read: No such file or directory: expected one label per line"


def test_labels_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xff")
    text = """
    backend = "Scale"
    [pipeline.outputs.a]
    kind = "tensor"
    labels = "absent.txt"
    [pipeline.outputs.b]
    kind = "list"
    items = {kind = "tensor", labels = "binary.txt"}
    [pipeline.expose.n.outputs.c]
    labels = "absent.onnx"
    """
    found = problems(write(tmp_path, text.replace("backend", "[n]\n    backend")))
    assert [problem.partition("[pipeline] ")[2] for problem in found] == [
        f"outputs.a.labels: the labels absent.txt {NO_FILE}",
        f"outputs.b.items.labels: the labels {tmp_path / 'binary.txt'} can't be read: 'utf-8' "
        "codec can't decode byte 0xff in position 0: invalid start byte: expected one label per "
        "line",
        f"expose.n.outputs.c.labels: the labels absent.onnx {NO_FILE}",
    ]


def test_problems_of_the_pipeline_table() -> None:
    def table(**keys: Any) -> list[str]:
        return problems({"pipeline": keys, "n": {"backend": "Scale"}})

    assert table(timout=3) == [
        "[pipeline] timout: there is no key 'timout' here, did you mean 'timeout'?"
    ]
    assert "[pipeline] loop: found 'often'" in table(loop="often")[0]
    assert "[pipeline] max_rounds: found 0: input should be greater" in table(max_rounds=0)[0]
    assert (
        "[pipeline] outputs.label.kind: found 'txt'" in table(outputs={"label": {"kind": "txt"}})[0]
    )
    assert "did you mean 'kind'" in table(outputs={"label": {"knd": "text"}})[0]
    assert "can't be an input" in table(inputs={"node_name": {}})[0]
    assert (
        problem({"pipeline": 3, "n": {"backend": "Scale"}})
        == "[pipeline]: expected a table, found 3"
    )


# Everything


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = """
    colour = "rgb"
    [a]
    backend = "Scael"
    next = "bb"
    facter = 2
    [b]
    backend = "S[Scale"
    [c]
    bakend = "Scale"
    next = "b"
    [pipeline]
    timeout = -1
    """
    texts = problems(write(tmp_path, text))
    assert all(text.startswith(str(tmp_path / "p.toml")) for text in texts)
    for expected in (
        "colour: no node knows",
        "[a] backend",
        "[a] next",
        "[a] facter",
        "[b] backend",
        "[c] backend",
        "[pipeline] timeout",
    ):
        assert any(expected in text for text in texts), (expected, texts)
    assert len(texts) == 7


FILE_KEYS = st.sampled_from(
    [
        "a",
        "b",
        "next",
        "backend",
        "max",
        "min",
        "instance_num",
        "resize_h",
        "global",
        "pipeline",
        "map",
        "filter",
        "borrow_from",
        "2",
        "a.2",
        "ResizeMat::resize_h",
        "x::y",
        "::",
    ]
)
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        "a",
        "b",
        "ResizeMat",
        "S[ResizeMat,DecodeMat]",
        "TensorrtTensor",
        "1&2",
        "1&2&3",
        "&",
        "",
        "4x3;5x3",
        4,
        0,
        1.5,
        True,
        None,
        "S[",
        "a[result:data]",
        "[x:y],b[y:data]",
        "or",
        "b,a",
        [1],
        [{}],
    ]
)
TABLES = st.dictionaries(
    FILE_KEYS,
    VALUES
    | st.dictionaries(
        FILE_KEYS, VALUES | st.dictionaries(FILE_KEYS, VALUES, max_size=3), max_size=6
    ),
    max_size=6,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TABLES)
def test_any_dict_loads_or_is_a_config_error(source: dict[str, Any]) -> None:
    try:
        load(source)
    except ConfigError as error:
        assert error.problems


def test_a_global_that_is_not_a_table() -> None:
    assert problem({"global": "a"}) == "[global]: expected a table, found 'a'"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.toml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    assert load(path).nodes


def test_the_file_of_the_guide() -> None:
    config = load(EXAMPLES / "resnet" / "guide.toml")
    assert list(config.nodes) == ["cpu_decoder", "cpu_posdecoder", "resnet50"]
    assert [node.instance_groups[0].instances for node in config.nodes.values()] == [8, 8, 2]
    assert {node.batching_timeout for node in config.nodes.values()} == {5.0}
    engine = member(config.nodes["resnet50"].instance_groups[0].spec, 0)
    assert (engine.precision, engine.mean, engine.max, engine.cache) == (
        "fp16",
        (123.675, 116.28, 103.53),
        "4",
        "resnet50.trt",
    )


def test_a_misspelt_next_in_the_file_of_the_guide(tmp_path: Path) -> None:
    text = (
        (EXAMPLES / "resnet" / "guide.toml")
        .read_text()
        .replace('next = "cpu_posdecoder"', 'next = "cpu_posprocess"')
    )
    assert problem(write(tmp_path, text)).endswith(
        "[cpu_decoder] next: there is no node 'cpu_posprocess', did you mean 'cpu_posdecoder'?"
    )
