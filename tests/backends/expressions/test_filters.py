"""Built-in filters, and registering and finding a user's own."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import pytest

from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.backends.expressions import filters, plugins
from penstock.backends.expressions.filters import (
    BUILTIN,
    Status,
    filter_registered_here,
    find_filter,
    register_filter,
)
from penstock.backends.expressions.plugins import installed_plugins
from penstock.backends.item import Item


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_registered", {})


def ask(name: str, item: Item) -> Status:
    return find_filter(name)(item)


def test_swap_makes_the_result_the_data() -> None:
    item: Item = {"data": 1, "result": 2, "score": 3}
    assert ask("swap", item) is Status.RUN
    assert item == {"data": 2, "score": 3}


def test_swap_breaks_without_a_result() -> None:
    item: Item = {"data": 1}
    assert ask("swap", item) is Status.BREAK
    assert item == {"data": 1}


@pytest.mark.parametrize("name", ["Run", "run", "Continue", "continue"])
def test_run_erases_the_result_and_the_error(name: str) -> None:
    item: Item = {"data": 1, "result": 2, "error": InvalidInput("x")}
    assert ask(name, item) is Status.RUN
    assert item == {"data": 1}


@pytest.mark.parametrize("name", ["or", "else"])
def test_or_runs_if_there_is_no_result(name: str) -> None:
    answered: Item = {"data": 1, "result": 2}
    assert ask(name, answered) is Status.SKIP
    assert answered == {"data": 1, "result": 2}
    failed: Item = {"data": 1, "error": InvalidInput("x")}
    assert ask(name, failed) is Status.RUN
    assert failed == {"data": 1}


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (("Skip", "skip"), Status.SKIP),
        (("SerialSkip", "serial_skip", "serialskip"), Status.SERIAL_SKIP),
        (("SubGraphSkip", "subgraph_skip", "subgraphskip"), Status.SUBGRAPH_SKIP),
        (("Break", "break"), Status.BREAK),
        (("Error", "error"), Status.ERROR),
    ],
)
def test_filters_named_after_a_status_return_it_and_change_nothing(
    names: tuple[str, ...], status: Status
) -> None:
    for name in names:
        item: Item = {"data": 1, "result": 2}
        assert ask(name, item) is status
        assert item == {"data": 1, "result": 2}


@pytest.mark.parametrize("name", ["filter", "if"])
@pytest.mark.parametrize("status", [Status.SKIP, "Skip", "skip"])
def test_the_item_can_name_the_status(name: str, status: Any) -> None:
    assert ask(name, {"data": 1, "filter": status}) is Status.SKIP


@pytest.mark.parametrize("status", [Status.RUN, "Run", "Continue"])
def test_run_named_by_the_item_erases_the_result(status: Any) -> None:
    item: Item = {"data": 1, "result": 2, "filter": status}
    assert ask("filter", item) is Status.RUN
    assert item == {"data": 1, "filter": status}


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({}, "which is missing"),
        ({"filter": "swap"}, "which is 'swap'"),
        ({"filter": 3}, "which is 3"),
    ],
)
def test_an_item_without_a_known_status_is_an_error(item: Item, problem: str) -> None:
    with pytest.raises(
        BackendError,
        match=f"the item's key 'filter', {problem}: expected one of Run, Skip, SerialSkip",
    ):
        ask("filter", item)


def test_result2other_is_swap_that_keeps_the_result() -> None:
    item: Item = {"data": 1, "result": 2}
    assert ask("result2other", item) is Status.RUN
    assert item == {"data": 2, "other": 2}
    assert ask("result2other", {"data": 1}) is Status.BREAK


def test_an_unknown_name_suggests_the_nearest() -> None:
    register_filter("is_large", lambda item: Status.RUN)
    with pytest.raises(ConfigError, match="there is no filter 'isLarge', did you mean 'is_large'"):
        find_filter("isLarge")
    with pytest.raises(ConfigError, match="there is no filter 'orr', did you mean 'or'"):
        find_filter("orr")
    with pytest.raises(ConfigError, match=r"no filter 'x': expected one of .*, if, is_large, or, "):
        find_filter("x")


def test_a_registered_function_is_a_filter() -> None:
    @register_filter("large")
    def large(item: Item) -> Status:
        return Status.RUN if item["data"] > 9 else Status.SKIP

    assert find_filter("large") is large
    assert (ask("large", {"data": 10}), ask("large", {"data": 1})) == (Status.RUN, Status.SKIP)
    assert filter_registered_here("large")
    assert not filter_registered_here("or")


def test_registering_ones_own_name_again_replaces_it() -> None:
    register_filter("f", lambda item: Status.RUN)
    register_filter("f", lambda item: Status.BREAK)
    assert ask("f", {}) is Status.BREAK


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_a_name_of_penstocks_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="Penstock's own"):
        register_filter(name, lambda item: Status.RUN)


def test_an_invalid_name_or_filter_is_refused() -> None:
    async def later(item: Item) -> Status:
        return Status.RUN

    with pytest.raises(ValueError, match="not a valid name"):
        register_filter("a,b", lambda item: Status.RUN)
    for wrong in (Status.RUN, later, dict):
        with pytest.raises(TypeError, match="expected a plain function from an item to a Status"):
            register_filter("x", wrong)  # type: ignore[type-var]  # refused, as a checker does
        with pytest.raises(ConfigError, match="no filter 'x'"):
            find_filter("x")


def test_entry_points_are_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    def point(name: str, value: str) -> EntryPoint:
        return EntryPoint(name, value, filters.FILTER_ENTRY_POINTS)

    groups: list[str] = []
    installed = [
        point("theirs", "penstock.backends.expressions.filters:swap"),
        point("swap", "penstock.backends.expressions.filters:run"),
        point("broken", "penstock.backends.nothing:there"),
        point("value", "penstock.backends.expressions.filters:FILTER_ENTRY_POINTS"),
    ]

    def entry_points(*, group: str) -> list[EntryPoint]:
        groups.append(group)
        return installed

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    installed_plugins.cache_clear()
    try:
        assert find_filter("theirs") is filters.swap
        assert find_filter("swap") is filters.swap, "a package can't replace Penstock's own filter"
        assert not filter_registered_here("theirs"), "another process finds it as well"
        with pytest.raises(
            ConfigError, match=r"the filter broken of .* can't be loaded: ModuleNotFoundError"
        ):
            find_filter("broken")
        with pytest.raises(
            ConfigError,
            match=r"the filter value of .* can't be loaded: TypeError: filter 'value': expected a ",
        ):
            find_filter("value")
        with pytest.raises(ConfigError, match="did you mean 'theirs'"):
            find_filter("their")
        assert groups == ["penstock.filters"]
    finally:
        installed_plugins.cache_clear()
