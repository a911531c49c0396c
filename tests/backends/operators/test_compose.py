"""Sequential and its filters, the wrappers, and Identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock import pipe
from penstock.backends.base import UNBOUNDED, Backend, BatchRange, Context, Params
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions import filters, registry
from penstock.backends.expressions.filters import Status, register_filter
from penstock.backends.expressions.registry import register_backend
from penstock.backends.expressions.spec import Spec
from penstock.backends.item import Item
from penstock.backends.operators.compose import Identity, Sequential, SyncTensor, Torch, chain_range


class Double(Backend):
    batches: list[int]

    def init(self, params: Any, context: Context) -> None:
        self.batches = []

    def forward(self, batch: list[Item]) -> None:
        self.batches.append(len(batch))
        for item in batch:
            item["result"] = item["data"] * 2


class One(Double):
    max = 1


class Learns(Double):
    """Knows its range only after `init`."""

    def init(self, params: Any, context: Context) -> None:
        super().init(params, context)
        self.min, self.max = 2, 4


class Silent(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if item["data"] != "silent":
                item["result"] = item["data"]


class Soft(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            item["result"] = item["data"]
            if item["data"] == "bad":
                item["error"] = InvalidInput("bad")


class Raises(Backend):
    max = 1

    def forward(self, batch: list[Item]) -> None:
        (item,) = batch
        if item["data"] == "bad":
            raise InvalidInput("bad")
        if item["data"] == "broken":
            raise RuntimeError("broken")
        item["result"] = item["data"]


def spec(cls: type[Backend], *children: Spec) -> Spec:
    return Spec(cls.__name__, cls, Params(), children)


def chain(*members: type[Backend]) -> Sequential:
    backend = spec(Sequential, *map(spec, members)).create(Context())
    assert isinstance(backend, Sequential)
    return backend


def test_identity() -> None:
    items: list[Item] = [{"data": 1}, {"data": None}]
    Identity().forward(items)
    assert [item["result"] for item in items] == [1, None]


def test_result_moves_to_data_between_members() -> None:
    item: Item = {"data": 3, "kept": True}
    chain(Double, Double, Double).forward([item])
    assert item == {"data": 12, "result": 24, "kept": True}


def test_an_item_without_result_leaves_the_chain_and_the_others_go_on() -> None:
    items: list[Item] = [{"data": "a"}, {"data": "silent"}, {"data": "b"}]
    sequence = chain(Silent, Double)
    sequence.forward(items)
    assert [item.get("result") for item in items] == ["aa", None, "bb"]
    assert items[1] == {"data": "silent"}
    assert sequence.children[1].batches == [2]  # type: ignore[attr-defined]


def test_an_item_with_error_leaves_the_chain() -> None:
    items: list[Item] = [{"data": "bad"}, {"data": "a"}]
    sequence = chain(Soft, Double)
    sequence.forward(items)
    assert sequence.children[1].batches == [1]  # type: ignore[attr-defined]
    assert isinstance(items[0]["error"], InvalidInput)
    assert items[1]["result"] == "aa"


def test_the_result_of_an_earlier_member_is_not_the_answer() -> None:
    item: Item = {"data": "silent"}
    chain(Identity, Silent).forward([item])
    assert item == {"data": "silent"}


def test_later_members_do_not_run_without_items() -> None:
    sequence = chain(Silent, Double)
    sequence.forward([{"data": "silent"}])
    assert sequence.children[1].batches == []  # type: ignore[attr-defined]


def test_a_member_with_max_1_is_looped_and_the_others_get_the_batch() -> None:
    sequence = chain(One, Double)
    items: list[Item] = [{"data": n} for n in range(3)]
    sequence.forward(items)
    assert [item["result"] for item in items] == [0, 4, 8]
    assert [child.batches for child in sequence.children] == [[1, 1, 1], [3]]  # type: ignore[attr-defined]


def test_invalid_input_in_a_looped_member_is_that_items_soft_failure() -> None:
    items: list[Item] = [{"data": "a"}, {"data": "bad"}, {"data": "b"}]
    chain(Raises, Double).forward(items)
    assert [item.get("result") for item in items] == ["aa", None, "bb"]
    assert isinstance(items[1]["error"], InvalidInput)


def test_another_exception_fails_the_batch() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        chain(Raises, Double).forward([{"data": "a"}, {"data": "broken"}])


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([(1, 1), (1, 1)], (1, 1)),
        ([(1, 1), (2, 8)], (2, 8)),
        ([(1, 8), (2, 16), (1, 1)], (2, 8)),
        ([(1, UNBOUNDED), (1, 4)], (1, 4)),
        ([(1, UNBOUNDED)], (1, UNBOUNDED)),
    ],
)
def test_the_range_of_a_chain(members: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert chain_range(BatchRange(*member) for member in members) == expected


def test_an_empty_intersection_is_a_load_error() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 8\], \[1, 2\]"):
        chain_range([BatchRange(4, 8), BatchRange(1, 2)])


def test_range_is_declared_before_init_and_known_after() -> None:
    declared = spec(Torch, spec(Sequential, spec(One), spec(Learns)))
    assert declared.declared_range == (1, UNBOUNDED)
    backend = declared.create(Context())
    assert (backend.min, backend.max) == (2, 4)


@pytest.mark.parametrize("wrapper", [SyncTensor, Torch])
def test_wrappers_run_their_child(wrapper: type[Backend]) -> None:
    backend = spec(wrapper, spec(One)).create(Context())
    item: Item = {"data": 2}
    backend.forward([item])
    assert item["result"] == 4
    assert backend.max == 1


def test_sync_tensor_alone_passes_the_item_on() -> None:
    assert spec(SyncTensor).declared_range == (1, UNBOUNDED)
    assert spec(SyncTensor).shape_key is None
    backend = spec(Sequential, spec(Double), spec(SyncTensor)).create(Context())
    item: Item = {"data": 2}
    backend.forward([item])
    assert item["result"] == 4
    assert backend.max == spec(Sequential, spec(Double)).create(Context()).max


def test_a_sequential_has_the_shape_key_of_its_first_member() -> None:
    class Shaped(Backend):
        @staticmethod
        def shape_key(item: Item) -> int:  # type: ignore[override]
            return len(item["data"])

    assert spec(Shaped).shape_key is Shaped.shape_key
    key = spec(Torch, spec(Sequential, spec(Shaped), spec(Double))).shape_key
    assert key is not None
    assert key({"data": "abc"}) == 3
    assert spec(Sequential, spec(Double), spec(Shaped)).shape_key is None


def test_a_member_can_empty_its_list() -> None:
    class Consumer(Backend):
        def forward(self, batch: list[Item]) -> None:
            while batch:
                item = batch.pop()
                item["result"] = item["data"] + 1

    chain = Spec(
        "Sequential",
        Sequential,
        Sequential.parameters,
        tuple(Spec("Consumer", Consumer, None) for _ in range(2)),
    ).create(Context())
    items = [{"data": 1}, {"data": 5}]
    chain.forward(items)
    assert [item["result"] for item in items] == [3, 7]


def test_invalid_input_raised_for_a_batch_of_one_is_a_soft_failure() -> None:
    class Batches(Raises):
        max = 8

    item: Item = {"data": "bad"}
    chain(Batches, Double).forward([item])
    assert isinstance(item["error"], InvalidInput) and "result" not in item
    with pytest.raises(InvalidInput) as caught:
        spec(Sequential, spec(Identity), spec(Strict)).create(Context()).forward(
            [{"data": "bad"}, {"data": "a"}]
        )
    assert caught.value.penstock_backend == "Strict"  # type: ignore[attr-defined]


# filters before members


class Strict(Backend):
    """Raises for a whole batch, as an engine can."""

    def init(self, params: Any, context: Context) -> None: ...

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            if item["data"] == "bad":
                raise InvalidInput("bad")
            item["result"] = item["data"]


def broken(data: Any) -> Any:
    raise RuntimeError("Used in tests")


def wrong(data: Any) -> Any:
    raise ValueError("Used in tests")


def appending(text: str) -> Callable[[str], str]:
    return lambda data: data + text


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the test's own members, and torchpipe's fault injection under its names."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(filters, "_registered", {})
    for backend in (Silent, Soft, Strict, Raises):
        register_backend(backend.__name__, backend)
    for letter in "XYZ":
        register_backend(letter, appending(letter.lower()))
    register_backend("RuntimeError", broken)
    register_backend("InvalidArgumentError", wrong)


def answers(backend: Backend, *data: Any) -> list[Any]:
    items: list[Item] = [{"data": value} for value in data]
    backend.forward(items)
    return [item.get("result") for item in items]


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(("fast", "lost"), [("Silent", "silent"), ("Raises", "bad")])
def test_a_fallback_runs_for_items_without_a_result(
    make: Callable[..., Backend], fast: str, lost: str
) -> None:
    items: list[Item] = [{"data": "a"}, {"data": lost}]
    make(f"S[{fast},(or)X,Y]").forward(items)
    assert items == [{"data": "a", "result": "ay"}, {"data": f"{lost}x", "result": f"{lost}xy"}]


@pytest.mark.usefixtures("own_names")
def test_a_fallback_runs_for_an_item_that_a_member_raised_for() -> None:
    with pipe("S[Strict,(or)X,Y]") as chained:
        items = [{"data": "a"}, {"data": "bad"}, {"data": "b"}]
        chained(items)
    assert items == [
        {"data": "a", "result": "ay"},
        {"data": "bad", "result": "badxy"},
        {"data": "b", "result": "by"},
    ]


@pytest.mark.usefixtures("own_names")
def test_an_item_that_left_at_a_member_without_filter_does_not_come_back(
    make: Callable[..., Backend],
) -> None:
    item: Item = {"data": "silent"}
    make("S[Silent,X,(or)Y]").forward([item])
    assert item == {"data": "silent"}


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(
    ("expression", "data", "result"),
    [
        ("S[X,(Run)Y]", "x", "y"),
        ("S[X,(swap)Y]", "x", "xy"),
        ("S[X,(Skip)Y,Z]", "x", "xz"),
        ("S[X,(Skip)Y]", "", "x"),
        ("S[X,(Break)Y,Z]", "", "x"),
        ("S[X,(SerialSkip)Y,Z]", "", "x"),
        ("S[X,(SubGraphSkip)Y,Z]", "", "x"),
        ("S[S[X,(Break)Y,Z],Z]", "x", "xz"),
        ("S[Silent,(swap)Y,(Run)Z]", "silent", None),
        ("S[Silent,(Run)Y]", "silent", "silenty"),
    ],
)
def test_the_effect_of_each_status(
    make: Callable[..., Backend], expression: str, data: str, result: str
) -> None:
    item: Item = {"data": ""} if data != "silent" else {"data": data}
    make(expression).forward([item])
    assert item.get("result") == result
    assert "error" not in item


@pytest.mark.usefixtures("own_names")
def test_each_item_has_its_own_status(make: Callable[..., Backend]) -> None:
    statuses: dict[str, Status] = {"run": Status.RUN, "skip": Status.SKIP, "break": Status.BREAK}
    seen: list[str] = []

    @register_filter("decides")
    def decides(item: Item) -> Status:
        seen.append(item["status"])
        item["data"] = item["result"]
        return statuses[item["status"]]

    items: list[Item] = [{"data": "", "status": status} for status in ("break", "run", "skip")]
    make("S[X,(decides)Y,Z]").forward(items)
    assert [item["result"] for item in items] == ["x", "xyz", "xz"]
    assert seen == ["break", "run", "skip"]


@pytest.mark.usefixtures("own_names")
def test_an_earlier_result_does_not_pass_for_that_of_a_member_that_ran(
    make: Callable[..., Backend],
) -> None:
    register_filter("just_run", lambda item: Status.RUN)
    items: list[Item] = [{"data": "a"}, {"data": "bad"}]
    make("S[Soft,(just_run)Empty]").forward(items)
    assert items == [{"data": "a"}, {"data": "bad"}]


@pytest.mark.usefixtures("own_names")
def test_a_member_gets_only_the_items_that_its_filter_lets_in(make: Callable[..., Backend]) -> None:
    backend = make("S[Silent,(or)X,(filter)HasKey(none)[X]]")
    items: list[Item] = [
        {"data": "a", "filter": "Skip"},
        {"data": "silent", "filter": "Break"},
        {"data": "b", "filter": "Run"},
    ]
    backend.forward(items)
    assert [item["result"] for item in items] == ["a", "silentx", "b"]


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("Error", None, "the filter Error before Identity returned Error"),
        ("decides", Status.ERROR, "the filter decides before Identity returned Error"),
        (
            "decides",
            "Run",
            "the filter decides before Identity returned 'Run': expected a penstock.Status",
        ),
        ("decides", None, "the filter decides before Identity returned None: expected"),
        ("filter", None, "the item's key 'filter', which is missing"),
    ],
)
def test_error_and_an_answer_that_is_not_a_status_fail_the_item(
    make: Callable[..., Backend], name: str, status: Any, message: str
) -> None:
    register_filter("decides", lambda item: status)
    with pytest.raises(BackendError, match=message) as caught:
        answers(make(f"S[X,({name})Identity]"), "a")
    assert caught.value.penstock_backend == f"({name})Identity"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("own_names")
def test_error_fails_only_its_item() -> None:
    register_filter("check", lambda item: Status.ERROR if item["data"] == "a" else Status.SKIP)
    with pipe("S[X,(check)Y]") as chained:
        with pytest.raises(
            BackendError,
            match=r"node 'main': backend \(check\)\S+ raised BackendError: "
            r"the filter check before \S+ returned",
        ):
            chained({"data": "a"})
        item = {"data": "b"}
        chained(item)
    assert item["result"] == "bx"


@pytest.mark.usefixtures("own_names")
def test_an_exception_in_a_filter_fails_the_item_and_invalid_input_softly(
    make: Callable[..., Backend],
) -> None:
    @register_filter("raises")
    def raises(item: Item) -> Status:
        raise {"a": InvalidInput, "b": KeyError}[item["data"]]("said so")

    items: list[Item] = [{"data": "a"}]
    make("S[X,(raises)Y,(Run)Z]").forward(items)
    assert isinstance(items[0]["error"], InvalidInput) and "result" not in items[0]
    with pytest.raises(KeyError) as caught:
        answers(make("S[X,(raises)Identity]"), "b")
    assert caught.value.penstock_backend == "(raises)Identity"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("name", ["RuntimeError", "InvalidArgumentError"])
def test_no_fallback_runs_after_another_exception(name: str) -> None:
    with pipe(f"S[{name},(or)X]") as chained, pytest.raises(RuntimeError, match="Used in tests"):
        chained({"data": "a"})


@pytest.mark.usefixtures("own_names")
def test_an_unknown_filter_is_an_error_at_load(make: Callable[..., Backend]) -> None:
    with pytest.raises(
        ConfigError, match=r"backend: \(orr\)X: there is no filter 'orr', did you mean 'or'\?"
    ):
        make("S[Silent,(orr)X]")
