"""Graphs in pipeline files: what is read from them, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.backends.base import Backend, Params
from penstock.backends.errors import ConfigError
from penstock.backends.expressions import filters, registry
from penstock.backends.expressions.composite import CompositeBackend, CopySplit, Jump
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.pipelines.config.load import PipelineConfig, load


class Small(Backend):
    class parameters(Params):
        factor: int = 1

    max = 4


class Asks(CompositeBackend):
    """Like a user's async backend: it takes any key and jumps nowhere by itself."""

    parameters = None


@pytest.fixture(autouse=True)
def _backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(filters, "_registered", {})
    register_backend("Small", Small)
    register_backend("Asks", Asks)


def problems(source: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(source)
    return [str(problem) for problem in caught.value.problems]


def problem(source: Any) -> str:
    """Return the one problem that `source` has."""
    (text,) = problems(source)
    return text


def graph(**following: Any) -> dict[str, Any]:
    """Make nodes from what follows each; a dict adds other keys."""
    return {
        name: {"backend": "Identity"}
        | (value if isinstance(value, dict) else {"next": value} if value is not None else {})
        for name, value in following.items()
    }


def toml(directory: Path, text: str) -> PipelineConfig:
    path = directory / "p.toml"
    path.write_text(text)
    return load(path)


DIAMOND = graph(a="b,c", b="d", c="d", d={"map": "b[result:data],c[result:other]"})


# next


def test_a_diamond() -> None:
    config = load(DIAMOND)
    assert list(config.nodes) == ["a", "b", "c", "d"]
    assert config.nodes["a"].next == ("b", "c")
    assert config.nodes["d"].map == (("b", (("result", "data"),)), ("c", (("result", "other"),)))
    assert (config.nodes["d"].filter, config.nodes["d"].shares, config.warnings) == (None, None, ())


def test_next_may_be_a_list() -> None:
    assert load(DIAMOND | graph(a=["b", " c "])).nodes["a"].next == ("b", "c")


def test_several_roots_are_several_graphs() -> None:
    config = load(graph(a="b", b=None, x="y", y=None))
    assert list(config.nodes) == ["a", "b", "x", "y"]
    assert config.entry is None


@settings(max_examples=200, deadline=None)
@given(
    st.permutations(range(7)),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12),
)
def test_the_order_is_topological_and_keeps_the_files_where_it_can(
    names: list[int], pairs: list[tuple[int, int]]
) -> None:
    # From the smaller number to the larger: there is no cycle.
    edges = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    nodes: dict[str, Any] = {}
    for name in names:
        before = sorted(str(first) for first, second in edges if second == name)
        mapped = (
            {
                "map": ",".join(
                    f"{source}[result:{'data' if source == before[0] else source}]"
                    for source in before
                )
            }
            if before
            else {}
        )
        nodes[str(name)] = {
            "backend": "Identity",
            "next": [str(second) for first, second in edges if first == name],
            **mapped,
        }
    try:
        ordered = [int(name) for name in load(nodes).nodes]
    except ConfigError as error:
        assert all("two roots lead here" in problem.message for problem in error.problems)
        return
    expected: list[int] = []
    while len(expected) < len(names):
        expected.append(
            next(
                n
                for n in names
                if n not in expected and all(a in expected for a, b in edges if b == n)
            )
        )
    assert ordered == expected


def test_circles_are_all_reported() -> None:
    assert problems(graph(r="a", a="b", b="a,c", c="d", d="c", x="x")) == [
        "[a] next: the nodes run in a circle: a -> b -> a",
        "[c] next: the nodes run in a circle: c -> d -> c",
        "[x] next: the nodes run in a circle: x -> x",
    ]


def test_a_node_that_two_roots_reach() -> None:
    text = problem(
        graph(a="b", b="d", c="d", d={"next": "e", "map": "b[result:data],c[result:x]"}, e=None)
    )
    assert text == (
        "[d]: two roots lead here ('a' and 'c'): a request enters at one of them, so this node "
        "would wait for the other for ever"
    )


def test_a_join_needs_a_map() -> None:
    assert problem(graph(a="b,c", b="d", c="d", d=None)) == (
        "[d] map: several nodes lead here (b, c): expected a map that says what to take from each, "
        "as in b[result:data],c[result:c]"
    )


def test_a_misspelt_next_is_the_only_problem_that_it_makes() -> None:
    """Without that edge, `resize` would be a root with a map and a filter, and `end` would follow
    two roots.
    """
    nodes = graph(
        decode="resise,other",
        resize={"next": "end,aside", "map": "decode[data:data]", "filter": "or"},
        aside={"map": "[result:data],decode[data:image]"},
        other="end",
        end={"map": "resize[result:data],other[result:x],decode[result:y]"},
    )
    assert problem(nodes) == "[decode] next: there is no node 'resise', did you mean 'resize'?"


def test_all_problems_of_a_graph_come_at_once() -> None:
    nodes = graph(
        a={"next": "b,nowhere_near,,c", "filter": "or"},
        b={"next": "d", "filter": "skp"},
        c={"next": "d", "map": "d[x:data,y:data]"},
        d={"map": "b[result:x],zz[x:y"},
        e={"next": "f", "map": "[x:data]"},
        f={"map": "e[result:x]", "next": "f2", "max": 0},
        f2={"backend": "Jump", "jump": "e"},
        g="g",
    )
    texts = problems({"pipeline": {"entry": "aa"}} | nodes)
    for expected in (
        "[pipeline] entry: there is no node 'aa', did you mean 'a'?",
        "[a] next: there is no node 'nowhere_near'",
        "[a] next: an empty piece",
        "[a] filter: nothing comes before this node, so it can't have a filter",
        "[b] filter: there is no filter 'skp', did you mean ",
        "[c] map: 'd' does not lead here: expected a node that comes before this one",
        "[c] map: the key 'data' is mapped twice, from 'd'",
        "[d] map: at character 19 of the map",
        "[e] map: nothing comes before this node, so it can't have a map",
        "[f] map: nothing is mapped to 'data', which every node needs; found x",
        "[f] max: found 0",
        "[f2] jump: it jumps to 'e', the root of its own graph, and would never end: expected",
        "[g] next: the nodes run in a circle: g -> g",
    ):
        assert any(text.startswith(expected) for text in texts), expected
    assert len(texts) == 13, texts


# map


def test_a_map_may_take_control_keys_that_act_inside_the_graph() -> None:
    taken = "a[result:data,x:filter,request_size:request_size,restart:restart,box:_box]"
    assert load(DIAMOND | graph(b={"next": "d", "map": taken})).nodes["b"].map[0][1][-1] == (
        "box",
        "_box",
    )


@pytest.mark.parametrize(
    "text",
    [
        '[j]\nmap = { a = { result = "data" } }',
        '[j]\nmap.a.result = "data"',
        '[j.map]\na = "result"',
    ],
)
def test_a_map_that_is_a_table(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml(tmp_path, f'[a]\nbackend = "Identity"\nnext = "j"\n{text}')
    (error,) = caught.value.problems
    assert (error.node, error.key) == ("j", "map")
    assert error.message.startswith('expected text, as in map = "A[result:data]", found {')


def test_sources_may_be_any_ancestor() -> None:
    config = load(graph(a="b", b="c", c={"map": "a[data:image],b[result:data]"}))
    assert config.nodes["c"].map == (("a", (("data", "image"),)), ("b", (("result", "data"),)))


def test_a_map_without_a_name_means_the_only_predecessor() -> None:
    config = load(graph(a="b", b="c", c={"map": "[result:data],a[data:image],b[score:score]"}))
    assert config.nodes["c"].map == (
        ("b", (("result", "data"), ("score", "score"))),
        ("a", (("data", "image"),)),
    )
    assert config.warnings == ()


def test_a_map_without_a_name_at_a_join_takes_the_first_by_name_and_warns() -> None:
    config = load(graph(r="z,c", z="d", c="d", d={"map": "[result:data],z[result:other]"}))
    assert config.nodes["d"].map == (("c", (("result", "data"),)), ("z", (("result", "other"),)))
    assert config.warnings == (
        "[d] map: [result:data] names none of its predecessors (c, z): "
        "'c', the first by name, is taken",
    )


def test_problems_of_maps() -> None:
    def mapped(text: str) -> str:
        return problem(DIAMOND | graph(b={"next": "d", "map": text}))

    assert (
        mapped("c[result:data]")
        == "[b] map: 'c' does not lead here: expected a node that comes before this one"
    )
    assert (
        mapped("d[result:data]")
        == "[b] map: 'd' does not lead here: expected a node that comes before this one"
    )
    assert (
        mapped("b[result:data]")
        == "[b] map: 'b' is this node itself: expected a node that comes before this one"
    )
    assert mapped("aa[result:data]") == "[b] map: there is no node 'aa', did you mean 'a'?"
    assert mapped("a[result:data,x:y,z:y]") == "[b] map: the key 'y' is mapped twice, from 'a'"
    for key in ("event", "node_name"):
        assert mapped(f"a[result:data,x:{key}]") == (
            f"[b] map: nothing can be mapped to {key!r}: Penstock reads this key where a request "
            "comes in, and it means nothing inside the graph"
        )
    assert (
        mapped("a[result:x]")
        == "[b] map: nothing is mapped to 'data', which every node needs; found x"
    )
    twice = DIAMOND | graph(d={"map": "b[result:data],c[result:data]"})
    assert problem(twice) == "[d] map: the key 'data' is mapped twice, from 'b' and 'c'"


# filter


@pytest.mark.parametrize(
    "name", ["swap", "Run", "Continue", "or", "filter", "serial_skip", " SubGraphSkip "]
)
def test_filters_are_known_by_name(name: str) -> None:
    assert load(graph(a="b", b={"filter": name})).nodes["b"].filter == name.strip()


def test_a_registered_filter_is_known() -> None:
    register_filter("mine", lambda item: Status.RUN)
    assert load(graph(a="b", b={"filter": "mine"})).nodes["b"].filter == "mine"
    assert (
        problem(graph(a="b", b={"filter": "mne"}))
        == "[b] filter: there is no filter 'mne', did you mean 'mine'?"
    )
    assert "expected the name of a filter, found 3" in problem(graph(a="b", b={"filter": 3}))


FILTER = """
from penstock import Status, register_filter

@register_filter("of_the_module")
def passes(item):
    return Status.SKIP

def same(data):
    return data
"""


@pytest.mark.parametrize(
    "nodes",
    [
        '[a]\nbackend = "Identity"\nnext = "b"\n'
        '[b]\nfilter = "of_the_module"\nbackend = "Python[ops.py:same]"',
        '[a]\nbackend = "S[Identity,(of_the_module)Python[ops.py:same]]"',
    ],
)
def test_a_filter_that_a_nodes_own_module_registers_is_known(tmp_path: Path, nodes: str) -> None:
    (tmp_path / "ops.py").write_text(FILTER)
    toml(tmp_path, nodes)
    filters._registered.clear()
    with pytest.raises(ConfigError, match="there is no filter 'of_the_module'"):
        toml(tmp_path, nodes.replace("ops.py:same", "builtins:repr"))


def test_a_filter_or_a_map_on_a_root_is_an_error() -> None:
    assert (
        problem({"backend": "Identity", "filter": "or"})
        == "[main] filter: nothing comes before this node, so it can't have a filter"
    )
    assert "it can't have a map" in problem(graph(a={"next": "b", "map": "b[x:data]"}, b=None))


def test_a_filter_among_the_defaults_holds_for_all_except_the_roots() -> None:
    config = load({"filter": "or"} | graph(a="b,c", b=None, c={"filter": "swap"}))
    assert [node.filter for node in config.nodes.values()] == [None, "or", "swap"]
    assert (
        problem({"filter": "oor"} | graph(a="b", b=None))
        == "filter: there is no filter 'oor', did you mean 'or'?"
    )


@pytest.mark.parametrize("key", ["map", "borrow_from"])
def test_keys_that_can_not_be_a_default(key: str) -> None:
    assert (
        problem({key: "a"} | graph(a=None))
        == f"{key}: this is a key of one node: it can't be a default for all nodes"
    )


# logical nodes, borrow_from


def test_logical_nodes_from_toml_and_from_dicts(tmp_path: Path) -> None:
    text = """
    [det]
    backend = "Identity"
    next = "rec"
    [rec]
    backend = "Small"
    factor = 3
    instance_num = 2
    batching_timeout = 5
    priority_levels = 3
    filter = "or"
    next = "rec.2"
    [rec.2]
    map = "det[result:data]"
    filter = "Skip"
    next = "rec.3"
    [rec.3]
    """
    config = toml(tmp_path, text)
    assert list(config.nodes) == ["det", "rec", "rec.2", "rec.3"]
    second = config.nodes["rec.2"]
    assert (second.shares, second.instance_groups, second.next, second.filter) == (
        "rec",
        (),
        ("rec.3",),
        "Skip",
    )
    assert second.map == (("det", (("result", "data"),)),)
    assert (second.batching_timeout, second.priority_levels, second.default_priority) == (5.0, 3, 2)
    third = config.nodes["rec.3"]
    assert (third.shares, third.instance_groups, third.next, third.map, third.filter) == (
        "rec",
        (),
        (),
        (),
        None,
    )
    rec = config.nodes["rec"]
    assert (rec.shares, rec.instance_groups[0].instances) == (None, 2)
    assert list(load({"a": {"next": [], "2": {}, "1": {}}, "b": {}}).nodes) == [
        "a",
        "a.2",
        "a.1",
        "b",
    ]
    flat = {
        "det": {"backend": "Identity", "next": "rec"},
        "rec.2": {"map": "det[result:data]", "filter": "Skip", "next": "rec.3"},
        "rec": {
            "backend": "Small",
            "factor": 3,
            "instance_num": 2,
            "batching_timeout": 5,
            "priority_levels": 3,
            "filter": "or",
        }
        | {"next": "rec.2", "3": {}},
    }
    assert load(flat).nodes == config.nodes


def test_keys_that_a_logical_node_ignores_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    nodes = graph(rec={"backend": "Small", "next": "rec.2"}) | {
        "rec.2": {"backend": "S[", "max": 99, "x": 1, "next": []}
    }
    with caplog.at_level(logging.WARNING, "penstock.config"):
        assert load(nodes).nodes["rec.2"].instance_groups == ()
    assert [record.getMessage() for record in caplog.records] == [
        "[rec.2]: `backend`, `max`, `x` have no effect: the node shares the instances of 'rec'"
    ]
    caplog.clear()
    nodes["rec.2"] = {"maps": "rec[result:data]"}
    assert problem(nodes) == (
        "[rec.2] maps: this is neither a key of a node nor a parameter of any backend, "
        "did you mean 'map'?"
    )
    assert caplog.records == []


def test_keys_that_share_with_a_missing_node_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = {"a": {"backend": "Small"}, "b": {"borrow_from": "e", "backend": "Small"}}
    with caplog.at_level(logging.WARNING, "penstock.config"):
        assert "[b] borrow_from: there is no node 'e'" in problem(nodes)
    assert caplog.records == []


def test_names_of_logical_nodes(tmp_path: Path) -> None:
    assert (
        problem(graph(rce="rec.2") | {"rec.2": {}})
        == "[rec.2]: it is a logical node of 'rec', but there is no node 'rec', did you mean 'rce'?"
    )
    with pytest.raises(ConfigError, match=r"\[rec.2\]: .* there is no node 'rec'"):
        toml(tmp_path, "[rec.2]")
    assert problems(graph(rec="rec.2") | {"rec.2": {"next": "rec.2.3"}, "rec.2.3": {}}) == [
        "[rec.2.3]: a logical node has one . in its name, as in rec.2"
    ]
    with pytest.raises(ConfigError, match=r"\[rec.2.3\]: a logical node has one \. in its name"):
        toml(tmp_path, '[rec]\nbackend="Identity"\nnext="rec.2"\n[rec.2]\n[rec.2.3]\nmax=3')
    assert "letters, digits" in problems({"rec.": {"backend": "Identity"}})[0]
    assert problem({"rec": {"backend": "Identity", "2": {}}, "rec.2": {}}).endswith(
        "[rec.2]: two tables define this node: keep one"
    )
    assert "a key must be text, found 3" in problem({"rec": {"backend": "Identity", 3: "x"}})


def test_a_node_that_borrows_from_a_borrower_uses_the_instances_of_the_owner() -> None:
    config = load(
        {
            "a": {"backend": "Small", "factor": 2, "next": "b"},
            "b": {"borrow_from": "c.2", "next": "c"},
            "c": {"borrow_from": "a", "next": "c.2"},
            "c.2": {},
        }
    )
    assert [(node.shares, len(node.instance_groups)) for node in config.nodes.values()] == [
        (None, 1),
        ("a", 0),
        ("a", 0),
        ("a", 0),
    ]


def test_problems_of_borrowing() -> None:
    def borrowing(**lenders: Any) -> list[str]:
        return problems(
            {"one": {"backend": "Identity"}}
            | {name: {"borrow_from": lender} for name, lender in lenders.items()}
        )

    assert borrowing(a="oen") == ["[a] borrow_from: there is no node 'oen', did you mean 'one'?"]
    assert borrowing(a=3) == ["[a] borrow_from: there is no node 3"]
    assert borrowing(a="a") == [
        "[a] borrow_from: the nodes borrow in a ring: a -> a: one must have a backend"
    ]
    assert borrowing(d="a", a="b", b="c", c="a") == [
        "[a] borrow_from: the nodes borrow in a ring: a -> b -> c -> a: one must have a backend"
    ]
    nodes = {"one": {"backend": "Identity", "next": "one.2"}, "one.2": {"borrow_from": "one"}}
    assert (
        problem(nodes)
        == "[one.2] borrow_from: a logical node already shares the instances of 'one'"
    )


# nodes without a backend


def test_a_node_with_structure_keys_only_is_identity(tmp_path: Path) -> None:
    config = toml(
        tmp_path,
        '[a]\nnext = "b"\n[b]\nfilter = "or"\nmap = "a[result:data]"\nnext = "final"\n[final]',
    )
    assert [node.instance_groups[0].spec.name for node in config.nodes.values()] == ["Identity"] * 3
    assert load({"backend": "Small", "a": {}}).nodes["a"].instance_groups[0].spec.name == "Small"
    assert "is 'bakend' a misspelling of it?" in "".join(
        problems({"a": {"bakend": "Small", "next": "b"}, "b": {}})
    )
    assert (
        problem({"a": {"max": 3}})
        == "[a] backend: expected an expression such as 'S[A,B]', there is no key backend"
    )


# composite backends


def jumping(target: str, **more: Any) -> dict[str, Any]:
    return graph(a="j", j={"backend": "Jump", "jump": target, **more}, sub="end", end=None)


def test_jump_enters_another_root() -> None:
    config = load(jumping("sub"))
    spec = config.nodes["j"].instance_groups[0].spec
    assert (spec.cls, spec.params.jump, config.warnings) == (Jump, "sub", ())
    assert (
        load(graph(a=None, b={"backend": "CopySplit(a,3)"})).nodes["b"].instance_groups[0].spec.cls
        is CopySplit
    )


def test_targets_that_a_jump_can_not_have() -> None:
    assert problem(jumping("sbu")) == "[j] jump: there is no node 'sbu', did you mean 'sub'?"
    assert (
        problem(jumping("end")) == "[j] jump: expected a root, found 'end', which comes after 'sub'"
    )
    assert problem(jumping("a")) == (
        "[j] jump: it jumps to 'a', the root of its own graph, and would never end: expected "
        "another root"
    )
    assert "[j] merge: found '': expected at least one key, as in result,score" in problem(
        graph(a=None, j={"backend": "MapReduce(a)", "merge": ""})
    )
    assert "[j] jump: Jump needs jump" in problem(graph(j={"backend": "Jump"}))
    assert problem(graph(j={"jump": "x"})).startswith(
        "[j] jump: this is neither a key of a node nor a parameter of Identity"
    )


def test_jumps_in_a_ring() -> None:
    nodes = graph(
        a={"backend": "Jump(c)"},
        b={"backend": "Small", "next": "b2"},
        b2={"backend": "MapReduce", "jump": "a"},
        c="c2",
        c2="c3",
        c3=None,
    )
    assert load(nodes)
    nodes["c3"] = {"backend": "CopySplit", "split_size": 2, "jump": "b"}
    assert problem(nodes) == "[a] jump: the graphs of these roots jump in a ring: a -> c -> b -> a"


def test_a_logical_node_of_a_jump_jumps_too() -> None:
    assert (
        problem(graph(a={"backend": "Jump(b)", "next": "a.2"}) | {"a.2": {}})
        == "[a] jump: there is no node 'b'"
    )
    nodes = graph(a={"backend": "Jump(b)"}, b="a.2") | {"a.2": {}}
    assert problem(nodes) == (
        "[a.2] jump: it jumps to 'b', the root of its own graph, and would never end: expected "
        "another root"
    )


@pytest.mark.parametrize(
    "backend",
    [
        "S[Identity,Jump(sub)]",
        "S[Jump(sub)]",
        "SyncTensor[Jump(sub)]",
        "S[Identity,SyncTensor[Asks]]",
    ],
)
def test_a_composite_is_a_whole_expression(backend: str) -> None:
    text = problem(graph(a={"backend": backend}, sub=None))
    assert "must be the whole expression of a node, since it waits for other nodes" in text
    assert text.startswith(
        "[a] backend: Jump inside S" if "Jump" in backend else "[a] backend: Asks inside SyncTensor"
    )


def test_a_composite_has_neither_process_nor_groups() -> None:
    assert problem(jumping("sub", executor="process")) == (
        "[j] executor: Jump waits for other nodes on the event loop: it can't run in a process"
    )
    assert "value with & means nothing here" in problem(jumping("sub", instance_num="1&2"))
    nodes = {"executor": "process"} | jumping("sub")
    assert {name: node.executor for name, node in load(nodes).nodes.items()} == {
        "a": "process",
        "j": "thread",
    } | {
        "sub": "process",
        "end": "process",
    }


def test_logic_takes_any_key_and_jumps_nowhere() -> None:
    spec = (
        load(graph(a={"backend": "Asks", "jump": "nowhere", "map_size": 3}))
        .nodes["a"]
        .instance_groups[0]
        .spec
    )
    assert spec.params == {"jump": "nowhere", "map_size": 3}


def test_a_declared_parameter_of_logic_may_be_called_jump() -> None:
    class Own(CompositeBackend):
        class parameters(Params):
            jump: str = ""

    register_backend("Own", Own)
    assert load(graph(a={"backend": "Own", "jump": "nowhere"}))


def test_a_max_above_the_backends_in_a_graph() -> None:
    text = problem(DIAMOND | graph(b={"backend": "Small", "max": 8, "next": "d"}))
    assert text == "[b] max: 8 is more than the backend takes: Small has the range [1, 4]"


# [pipeline]


def entering(entry: str, nodes: dict[str, Any] = DIAMOND) -> dict[str, Any]:
    return {"pipeline": {"entry": entry}, **nodes}


def test_the_entry_may_be_any_node_that_does_not_need_the_others() -> None:
    assert [load(entering(name)).entry for name in "ad"] == ["a", "d"]
    assert load(entering("y", graph(a=None, x="y", y=None))).entry == "y"
    assert problem(entering("b")) == (
        "[pipeline] entry: 'b' can't be the entry: it leads to 'd', which also needs 'c', "
        "and 'b' does not lead there"
    )
    chain = graph(a="b", b="c", c={"map": "a[data:image],b[result:data]"})
    assert "it leads to 'c', which also needs 'a'" in problem(entering("b", chain))
    assert load(entering("c", chain)).entry == "c"
    chain["c"]["map"] = "aa[result:data]"
    assert problem(entering("b", chain)) == "[c] map: there is no node 'aa', did you mean 'a'?"


def test_loops() -> None:
    config = load({"pipeline": {"loop": True, "max_rounds": "5"}, "a": {}})
    assert (config.loop, config.max_rounds) == (True, 5)
    config = load({"Interpreter::backend": "Ring", "a": {}})
    assert (config.loop, config.max_rounds) == (True, 10_000)


# warnings


def test_several_leaves_are_a_warning(tmp_path: Path) -> None:
    assert load(graph(a="b,c", b=None, c=None, x=None)).warnings == (
        "[a]: it leads to several last nodes (b, c): all of them run, and a request gets no result",
    )
    (warning,) = toml(tmp_path, '[a]\nnext = "b,c"\n[b]\n[c]').warnings
    assert warning.startswith(f"{tmp_path}/p.toml [a]: it leads to")


# large and deep


def test_a_long_file_loads() -> None:
    count = 2000
    nodes = {f"n{index}": {"next": f"n{index + 1}"} for index in range(count)} | {f"n{count}": {}}
    for index in range(2, count, 2):
        nodes[f"n{index}"]["map"] = f"n0[data:image],n{index - 1}[result:data]"
    assert list(load(nodes).nodes) == [f"n{index}" for index in range(count + 1)]
    nodes[f"n{count}"]["next"] = "n0"
    assert "in a circle" in problems(nodes)[0]
    wide = {
        "a": {"next": [f"n{index}" for index in range(count)]},
        "z": {"map": "a[data:data]"},
    } | {f"n{index}": {"next": "z"} for index in range(count)}
    assert list(load(wide).nodes)[-1] == "z"


def test_tables_nested_too_deep_are_a_config_error(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    nested["a"] = nested
    assert "nested too deep" in problem(nested)
    with pytest.raises(ConfigError, match=r"p\.toml: tables or arrays are nested too deep"):
        toml(tmp_path, "a = " + "[" * 100_000)


EXPRESSIONS = ["Identity", "Small", "Jump", "S[Identity,Jump(a)]", "Asks", 3]
STRUCTURE = st.fixed_dictionaries(
    {},
    optional={
        "backend": st.sampled_from(EXPRESSIONS),
        "next": st.sampled_from(["a", "b", "c", "a.2", "b,c", "c,d", ["d"], "x", "", 3]),
        "map": st.sampled_from(
            [
                "a[result:data]",
                "[result:data]",
                "b[x:data],c[y:data]",
                "b[x:y]",
                "x[y:data]",
                "[",
                3,
            ]
        ),
        "filter": st.sampled_from(["or", "swap", "x", None]),
        "borrow_from": st.sampled_from(["a", "b", "a.2", "x", 3]),
        "jump": st.sampled_from(["a", "b", "c", "x", 3]),
        "executor": st.sampled_from(["thread", "process"]),
    },
)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "a.2", "b.2"]), STRUCTURE, max_size=6),
    st.sampled_from([{}, {"entry": "a"}, {"entry": "b"}, {"loop": True}]),
)
def test_any_graph_loads_whole_or_is_a_config_error(
    nodes: dict[str, Any], pipeline: dict[str, Any]
) -> None:
    try:
        config = load({"pipeline": pipeline, **nodes})
    except ConfigError as error:
        assert error.problems
        return
    names = list(config.nodes)
    assert sorted(names) == sorted(nodes)
    for name, node in config.nodes.items():
        assert all(names.index(following) > names.index(name) for following in node.next)
        assert bool(node.instance_groups) is (node.shares is None)
        assert node.shares is None or config.nodes[node.shares].shares is None
        before = [other.name for other in config.nodes.values() if name in other.next]
        assert before or (node.filter is None and not node.map)
        assert len(before) < 2 or node.map
        assert not node.map or "data" in [target for _, pairs in node.map for _, target in pairs]
