"""Ensembles: which steps run when, on what, and how a request ends whose step fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import Backend
from penstock.backends.errors import (
    BackendError,
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    NotReady,
)
from penstock.backends.expressions.registry import register_backend
from penstock.backends.item import Item, RequestFacts
from penstock.pipelines.checking.check import check_pipelines
from penstock.pipelines.config.definition import PipelineConfig
from penstock.pipelines.config.load import load
from penstock.pipelines.config.versions import VersionPolicy
from penstock.pipelines.repository import Repository

from ..workshop import BOUND, queued, until

pytestmark = pytest.mark.usefixtures("own_registry", "no_threads_left")
LOOPS = ("debug",)  # no loop does anything else here than for other logic

ROWS = np.array([[1, 2], [3, 4]], np.float32)


def ports(*names: str, shape: tuple[int, ...] = (-1, 2), **more: Any) -> dict[str, Any]:
    return {
        name: {"kind": "tensor", "dtype": "FP32", "shape": list(shape), **more} for name in names
    }


def step(model: str, inputs: str, outputs: str, version: str = "") -> dict[str, Any]:
    """Make a step; `inputs` as "X=IN,Y=d": the model's tensor, and the ensemble's."""

    def mapping(text: str) -> dict[str, str]:
        return {
            name: tensor for name, _, tensor in (pair.partition("=") for pair in text.split(","))
        }

    return {
        "model": model,
        "inputs": mapping(inputs),
        "outputs": mapping(outputs),
        **({"version": version} if version else {}),
    }


def model(
    name: str, backend: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any], **keys: Any
) -> PipelineConfig:
    """Make a model; `backend`: the name of one, or what becomes one."""
    if not isinstance(backend, str):
        register_backend(f"Of_{name}", backend)
        backend = f"Of_{name}"
    of_pipeline = {key: keys.pop(key) for key in ("version", "batched") if key in keys}
    return load(
        {
            "pipeline": {
                "name": name,
                "inputs": inputs,
                "outputs": outputs,
                "positional": True,
                **of_pipeline,
            },
            name: {"backend": backend, **keys},
        }
    )


def ensemble(
    *steps: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    **keys: Any,
) -> PipelineConfig:
    return model(
        "both", "Ensemble", inputs or ports("IN"), outputs or ports("OUT"), steps=[*steps], **keys
    )


class Double(Backend):
    """Doubles, and notes the rows of each batch."""

    seen: list[list[int]]

    def forward(self, batch: list[Item]) -> None:
        self.seen.append([item.get("request_size", 1) for item in batch])
        for item in batch:
            item["result"] = item["data"] * 2


class Sum(Backend):
    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            first, second = item["data"]
            item["result"] = first + (100 if second is None else second)


@pytest.fixture
def double() -> PipelineConfig:
    Double.seen = []
    return model("double", Double, ports("X"), ports("Y"))


@pytest.fixture
def total() -> PipelineConfig:
    return model("total", Sum, ports("A") | ports("B", optional=True), ports("C"))


class Ask:
    """Asks `both` for its result, or for those of all parts."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    async def __call__(self, data: Any = ROWS, **keys: Any) -> Any:
        rows = {"request_size": len(ROWS)} if data is ROWS else {}
        pipeline = self.repository.pipelines["both"]
        answer: Any = await pipeline({"data": data, **rows, **keys})
        return [part["result"] for part in answer] if pipeline.streams else answer["result"]


@asynccontextmanager
async def serving(*configs: PipelineConfig) -> AsyncIterator[Ask]:
    """Serve the pipelines."""
    repository = Repository(configs)
    await repository.start()

    try:
        yield Ask(repository)
    finally:
        await repository.close()


async def test_tensors_flow_from_step_to_step(
    double: PipelineConfig, total: PipelineConfig
) -> None:
    both = ensemble(step("total", "A=IN,B=twice", "C=OUT"), step("double", "X=IN", "Y=twice"))
    async with serving(double, total, both) as ask:
        assert (await ask()).tolist() == (ROWS * 3).tolist()
        assert Double.seen == [[2]]  # as many rows as the request


async def test_several_outputs_are_a_list_in_the_declared_order(double: PipelineConfig) -> None:
    both = ensemble(
        step("double", "X=IN", "Y=TWICE"),
        step("double", "X=TWICE", "Y=FOUR"),
        outputs=ports("FOUR", "TWICE"),
    )
    async with serving(double, both) as ask:
        four, twice = await ask()
        assert (four[0, 0], twice[0, 0]) == (4, 2)


async def test_steps_whose_tensors_are_there_run_side_by_side() -> None:
    async def meet(item: Item, call: Any) -> Any:
        """End only once the other is there."""
        waiting.append(item["data"])
        here.set() if len(waiting) == 2 else None
        await here.wait()
        return item["data"] + len(waiting)

    here, waiting = asyncio.Event(), list[Any]()
    models = [model(name, meet, ports("X"), ports("Y")) for name in ("left", "right")]
    both = ensemble(
        step("left", "X=IN", "Y=L"), step("right", "X=IN", "Y=R"), outputs=ports("L", "R")
    )
    async with serving(*models, both) as ask:
        left, right = await ask()
        assert left.tolist() == right.tolist() == (ROWS + 2).tolist()


async def test_a_tensor_that_is_left_out_is_left_out_of_the_next_step(
    total: PipelineConfig,
) -> None:
    """An optional input of the ensemble, and an output that a model does not answer."""

    async def nothing(item: Item, call: Any) -> Any:
        return {"Y": None} if item["data"][0, 0] == 1 else item["data"]

    first = model("first", nothing, ports("X"), ports("Y"))
    both = ensemble(
        step("first", "X=IN", "Y=maybe"),
        step("total", "A=IN,B=maybe", "C=OUT"),
        step("total", "A=IN,B=MORE", "C=SUM"),
        inputs=ports("IN") | ports("MORE", optional=True),
        outputs=ports("OUT", "SUM"),
    )
    async with serving(first, total, both) as ask:
        out, added = await ask([ROWS, None], request_size=2)
        assert out.tolist() == added.tolist() == (ROWS + 100).tolist()
        out, added = await ask([ROWS * 2, ROWS], request_size=2)
        assert (out[0, 0], added[0, 0]) == (4, 3)


async def test_a_step_names_a_version(double: PipelineConfig) -> None:
    async def triple(item: Item, call: Any) -> Any:
        return item["data"] * 3

    newer = model("double2", triple, ports("X"), ports("Y"))
    newer = replace(newer, name="double", version="2")
    both = ensemble(
        step("double", "X=IN", "Y=OLD", version="1"),
        step("double", "X=IN", "Y=NEW"),
        outputs=ports("OLD", "NEW"),
    )
    configs = [
        replace(config, version_policy=VersionPolicy.read("all")) for config in (double, newer)
    ]
    async with serving(*configs, both) as ask:
        old, new = await ask()
        assert (old[0, 0], new[0, 0]) == (2, 3)


@pytest.mark.parametrize(
    ("batched", "shape", "given", "seen"),
    [
        (False, (2,), ROWS[:1], (2,)),  # a batch of one row, as one whole tensor
        (False, (-1, 2), ROWS, (2, 2)),  # its shape is right as it is
        (False, (2,), ROWS, None),  # two rows for a model that takes one
    ],
)
async def test_models_with_and_without_batches_work_together(
    batched: bool, shape: tuple[int, ...], given: Any, seen: tuple[int, ...] | None
) -> None:
    shapes: list[tuple[int, ...]] = []

    async def look(item: Item, call: Any) -> Any:
        shapes.append(item["data"].shape)
        return item["data"] + 1

    whole = model("whole", look, ports("X", shape=shape), ports("Y", shape=shape), batched=batched)
    both = ensemble(step("whole", "X=IN", "Y=OUT"))
    async with serving(whole, both) as ask:
        if seen is None:
            with pytest.raises(
                InvalidInput, match=r"unexpected shape .* Expected \[2\], got \[2,2\]"
            ):
                await ask(given)
        else:
            assert (await ask(given)).tolist() == (given + 1).tolist()
            assert shapes == [seen]


async def test_parameters_of_the_request_reach_every_step() -> None:
    seen: list[Any] = []

    async def look(item: Item, call: Any) -> Any:
        seen.append((item["colour"], call.request_id))
        return item["data"]

    first = model("first", look, ports("X"), ports("Y"))
    both = ensemble(step("first", "X=IN", "Y=a"), step("first", "X=a", "Y=OUT"))
    async with serving(first, both) as ask:
        pipeline = ask.repository.pipelines["both"]
        item = {"data": ROWS, "request_size": 2, "colour": "red"}
        await pipeline.submit_nowait(item, request_id="r1").future
    assert seen == [("red", "r1")] * 2


async def test_steps_that_no_wanted_output_needs_do_not_run(double: PipelineConfig) -> None:
    both = ensemble(
        step("double", "X=IN", "Y=TWICE"),
        step("double", "X=TWICE", "Y=four"),
        step("double", "X=four", "Y=EIGHT"),
        outputs=ports("TWICE", "EIGHT"),
    )
    async with serving(double, both) as ask:
        for wanted, found, count in ((("TWICE",), [2, None], 1), (("EIGHT",), [2, 8], 3)):
            Double.seen.clear()
            answer = await ask(request_facts=RequestFacts(requested_outputs=wanted))
            assert [None if array is None else array[0, 0] for array in answer] == found
            assert len(Double.seen) == count


async def test_a_step_that_keeps_states_gets_the_sequence_of_the_request() -> None:
    class Count(Backend):
        def forward(self, batch: list[Item]) -> None:
            for item in batch:
                sequence = item["sequence"]
                sequence.state = (sequence.state or 0) + 1
                item["result"] = np.full((1, 2), sequence.state, np.float32)

    counting = model("count", Count, ports("X"), ports("Y"), sequence={})
    both = ensemble(step("count", "X=IN", "Y=OUT"))
    async with serving(counting, both) as ask:
        for correlation_id, flags, count in ((7, 1, 1), (7, 0, 2), (8, 1, 1), (7, 2, 3)):
            facts = RequestFacts(correlation_id=correlation_id, flags=flags)
            assert (await ask(ROWS[:1], request_facts=facts))[0, 0] == count
        with pytest.raises(InvalidInput, match=r"in ensemble 'both', .*sequence"):
            await ask(ROWS[:1], request_facts=RequestFacts(correlation_id=7))


async def test_the_error_of_a_step_is_that_of_the_ensemble(total: PipelineConfig) -> None:
    class Late(DeadlineExceeded):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first + second)

    error: list[Exception] = []

    async def fail(item: Item, call: Any) -> Any:
        raise error[0]

    first = model("first", fail, ports("X"), ports("Y"))
    both = ensemble(step("first", "X=IN", "Y=OUT"))
    async with serving(first, both) as ask:
        for error[:], kind, text in (
            ([InvalidInput("too dark")], InvalidInput, "in ensemble 'both', too dark"),
            ([Late("too ", "late")], Late, "in ensemble 'both', too late"),
            (
                [ValueError("oh")],
                BackendError,
                "in ensemble 'both', node 'first': backend Of_first raised ValueError: oh",
            ),
        ):
            with pytest.raises(kind) as failed:
                await ask()
            assert str(failed.value) == text
        await ask.repository.unload("first")
        with pytest.raises(
            (NotFound, NotReady, InvalidInput), match=r"in ensemble 'both', .*first"
        ):
            await ask()


async def test_tensors_of_a_wrong_type_are_refused(double: PipelineConfig) -> None:
    async def whole_numbers(item: Item, call: Any) -> Any:
        return item["data"].astype(np.int32)

    first = model("first", whole_numbers, ports("X"), ports("Y"))
    both = ensemble(step("first", "X=IN", "Y=a"), step("double", "X=a", "Y=OUT"))
    async with serving(first, double, both) as ask:
        with pytest.raises(
            InvalidInput,
            match="in ensemble 'both', inference input 'X' data-type is 'INT32', but model "
            "'double' expects 'FP32'",
        ):
            await ask()


async def test_each_part_of_a_stream_passes_the_steps_after_it(double: PipelineConfig) -> None:
    closed: list[str] = []

    async def count(item: Item, call: Any) -> AsyncIterator[Any]:
        try:
            for number in range(int(item["data"][0, 0])):
                yield item["data"] + number
        finally:
            closed.append("count")

    counting = model("count", count, ports("X"), ports("Y"))
    both = ensemble(
        step("double", "X=b", "Y=OUT"),
        step("count", "X=a", "Y=b"),
        step("double", "X=IN", "Y=a"),
    )
    async with serving(double, counting, both) as ask:
        assert [part[0, 0] for part in await ask()] == [4, 6]
        assert [part[0, 0] for part in await ask(ROWS * 0)] == []
        closed.clear()
        stream = ask.repository.pipelines["both"].stream({"data": ROWS * 10, "request_size": 2})
        assert (await anext(stream))["result"][0, 0] == 40
        await stream.aclose()
    assert closed == ["count"]


async def test_a_stream_of_streams() -> None:
    async def two(item: Item, call: Any) -> AsyncIterator[Any]:
        for number in range(2):
            yield item["data"] * 10 + number

    twice = model("two", two, ports("X"), ports("Y"))
    both = ensemble(step("two", "X=IN", "Y=a"), step("two", "X=a", "Y=OUT"))
    async with serving(twice, both) as ask:
        assert [part[0, 0] for part in await ask()] == [100, 101, 110, 111]


async def test_an_ensemble_of_one_answer_refuses_a_step_of_many(double: PipelineConfig) -> None:
    """The model was replaced by one that streams after the ensemble was loaded."""
    async with serving(double, ensemble(step("double", "X=IN", "Y=OUT"))) as ask:
        await ask.repository.load(
            replace(model("parts", numbers, ports("X"), ports("Y")), name="double")
        )
        with pytest.raises(
            BackendError, match="in ensemble 'both', step of model 'double' answers"
        ):
            await ask()


A, B = step("double", "X=IN", "Y=a"), step("double", "X=a", "Y=OUT")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([A, A, B], "ensemble tensor 'a' can appear in an output map only once: step 1"),
        ([step("double", "X=other", "Y=OUT")], "ensemble input 'IN' is not used"),
        ([A], "ensemble output 'OUT' is not used: no step makes it"),
        (
            [step("double", "X=lost", "Y=OUT"), step("double", "X=IN", "Y=x")],
            "output 'OUT' is not written: at least one of its depending tensors, 'lost', is not",
        ),
        ([A, B, step("double", "X=a", "Y=spare")], "ensemble tensor 'spare' is unused"),
        (
            [step("sum", "A=IN,B=OUT", "C=x"), step("double", "X=x", "Y=OUT")],
            "output 'OUT' is not written: the steps that lead to it wait for each other",
        ),
        ([step("double", "X=IN", "Y=IN")], "step 0 makes 'IN', which is an input"),
    ],
)
def test_tensors_that_lead_nowhere_are_refused(steps: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ensemble(*steps)
    assert message in str(refused.value)


def test_an_ensemble_says_what_it_takes_and_is_all_of_its_pipeline() -> None:
    node = {"backend": "Ensemble", "steps": [step("double", "X=IN", "Y=OUT")]}
    with pytest.raises(
        ConfigError, match=r"expected its inputs and outputs in \[pipeline.inputs\]"
    ):
        load({"both": node})
    with pytest.raises(ConfigError, match="all of its pipeline: expected no other node"):
        load({"both": {**node, "next": "more"}, "more": {"backend": "Identity"}})


async def test_an_ensemble_answers_in_parts_if_a_step_does(double: PipelineConfig) -> None:
    """By way of another ensemble too."""

    async def two(item: Item, call: Any) -> AsyncIterator[Any]:
        yield item["data"]
        yield item["data"] + 1

    inner = model(
        "inner",
        "Ensemble",
        ports("IN"),
        ports("OUT"),
        steps=[step("two", "X=IN", "Y=OUT")],
    )
    both = ensemble(step("double", "X=a", "Y=OUT"), step("inner", "IN=IN", "OUT=a"))
    async with serving(model("two", two, ports("X"), ports("Y")), double, inner, both) as ask:
        assert [part[0, 0] for part in await ask()] == [2, 4]


async def numbers(item: Item, call: Any) -> AsyncIterator[Any]:
    yield item["data"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("lost", "X=IN", "Y=OUT")], "contains models that are not available: lost"),
        (
            [step("double", "X=IN", "Y=OUT", version="7")],
            "models that are not available: double (version 7)",
        ),
        (
            [step("double", "Z=IN", "Y=OUT")],
            "ensemble tensor 'IN' is mapping to non-existing input 'Z' in model 'double'",
        ),
        (
            [step("double", "X=IN", "Z=OUT")],
            "ensemble tensor 'OUT' is mapped from non-existing output 'Z' in model 'double'",
        ),
        (
            [step("total", "B=IN", "C=OUT")],
            "input 'A' in model 'total' is not mapped to any ensemble tensors",
        ),
        (
            [step("whole", "X=IN", "Y=OUT")],
            "ensemble tensor 'IN': inconsistent data type: FP32 is inferred from model 'both' "
            "while INT32 is inferred from model 'whole'",
        ),
        (
            [step("wide", "X=IN", "Y=a"), step("double", "X=a", "Y=OUT")],
            "ensemble tensor 'a': inconsistent shape: [-1, 3] is inferred from model 'wide' while "
            "[-1, 2] is inferred from model 'double'",
        ),
        (
            [step("numbers", "X=IN", "Y=a"), step("total", "A=a,B=IN", "C=OUT")],
            "step of model 'total' receives inputs originated from different decoupled models",
        ),
        (
            [step("both", "IN=IN", "OUT=OUT")],
            "circular dependency between ensembles: both -> both",
        ),
        (
            [step("other", "IN=IN", "OUT=OUT")],
            "circular dependency between ensembles: other -> both -> other",
        ),
    ],
)
async def test_steps_that_do_not_fit_their_models_are_refused(
    double: PipelineConfig, total: PipelineConfig, steps: list[Any], message: str
) -> None:
    whole = {"X": {"kind": "tensor", "dtype": "INT32", "shape": [-1, 2]}}
    other = model(
        "other", "Ensemble", ports("IN"), ports("OUT"), steps=[step("both", "IN=IN", "OUT=OUT")]
    )
    models = [
        double,
        total,
        model("whole", "Identity", whole, ports("Y")),
        model("wide", "Identity", ports("X"), ports("Y", shape=(-1, 3))),
        model("numbers", numbers, ports("X"), ports("Y")),
        *([other] if steps[0]["model"] == "other" else []),
    ]
    with pytest.raises(ConfigError) as refused:
        async with serving(*models, ensemble(*steps)):
            pass
    assert message in str(refused.value)


def test_what_is_wrong_in_a_step_is_named() -> None:
    with pytest.raises(ConfigError, match=r"steps\.1\.model"):
        ensemble(step("double", "X=IN", "Y=OUT"), step("", "X=OUT", "Y=a"))


def test_check_finds_models_that_are_not_there(double: PipelineConfig) -> None:
    """A wrong version too. One file alone may be served with others."""
    both = ensemble(step("double", "X=IN", "Y=OUT", version="2"))
    for whole in (True, False):
        (opened, _) = check_pipelines([both, double], whole)
        (finding,) = [one for one in opened.findings if one.problem.key == "steps"]
        assert "models that are not available: double (version 2)" in finding.problem.message
        assert finding.warning is not whole


async def test_an_ensemble_is_loaded_after_its_models_and_not_without_them(
    double: PipelineConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Double):
        def init(self, params: Any, context: Any) -> None:
            raise ValueError("no weights")

    both = ensemble(step("inner", "IN=IN", "OUT=OUT"))
    inner = replace(ensemble(step("double", "X=IN", "Y=OUT")), name="inner")
    async with serving(both, inner, double) as ask:
        assert [*ask.repository.pipelines] == ["double", "inner", "both"]
        assert ask.repository.called_alone_by("inner") == ["double"]
    broken = model("double", Broken, ports("X"), ports("Y"))
    repository = Repository([both, inner, broken, model("other", Double, ports("X"), ports("Y"))])
    repository._strict = False  # as of a directory
    await repository.start()
    try:
        assert [*repository.pipelines] == ["other"]
        assert "ensemble 'inner' depends on 'double' which has no loaded version" in caplog.text
        assert "ensemble 'both' depends on 'inner' which has no loaded version" in caplog.text
    finally:
        await repository.close()


def write_models(folder: Path, **called: str) -> None:
    """Write models, each with the name of the one that it calls; "": it is no ensemble."""
    port = '{ kind = "tensor", dtype = "FP32", shape = [-1, 2] }'
    for name, other in called.items():
        node = 'backend = "Identity"'
        if other:
            node = (
                f'backend = "Ensemble"\nsteps = [{{ model = "{other}", inputs = {{ X = "X" }}, '
                'outputs = { Y = "Y" } }]'
            )
        (folder / f"{name}.toml").write_text(
            f"[pipeline.inputs]\nX = {port}\n[pipeline.outputs]\nY = {port}\n[{name}]\n{node}\n"
        )


async def test_two_ensembles_that_call_each_other_are_refused_when_loaded_at_once(
    tmp_path: Path,
) -> None:
    write_models(tmp_path, double="", first="second", second="first", third="first")
    repository = Repository.read(tmp_path)
    await repository.start()
    try:
        assert [*repository.pipelines] == ["double"]
        async with asyncio.timeout(20):
            failed = await asyncio.gather(
                *[repository.reload(name) for name in ("third", "first", "second")],
                return_exceptions=True,
            )
        assert [type(error) for error in failed] == [ConfigError] * 3
    finally:
        await repository.close()
        await until_read()


async def until_read() -> None:
    """Wait for the threads that read files: each ends a moment after it has said what it read."""
    await until(
        lambda: not any(thread.name.startswith("reading") for thread in threading.enumerate())
    )


async def test_a_load_of_an_ensemble_loads_the_models_that_it_calls(tmp_path: Path) -> None:
    write_models(tmp_path, double="", both="double")
    repository = Repository.read(tmp_path)
    await repository.start()
    try:
        for name in ("both", "double"):
            await repository.unload(name)
        await repository.reload("both")
        assert [*repository.pipelines] == ["double", "both"]
        await repository.unload("double")
        (tmp_path / "double.toml").unlink()
        with pytest.raises(ConfigError, match=r"double\.toml: there is no such file"):
            await repository.reload("both")
        assert "both" in repository.pipelines  # as it was
        write_models(tmp_path, both="both")
        with pytest.raises(ConfigError, match="circular dependency"):
            await repository.reload("both")
    finally:
        await repository.close()
        await until_read()


async def test_steps_have_the_priority_of_the_request_where_they_have_levels() -> None:
    seen: dict[str, list[int | None]] = {"few": [], "many": []}
    models = [
        model("few", "Identity", ports("X"), ports("Y"), priority_levels=2),
        model("many", "Identity", ports("X"), ports("Y"), priority_levels=5),
    ]
    both = ensemble(step("few", "X=IN", "Y=a"), step("many", "X=a", "Y=OUT"))
    async with serving(*models, both) as ask:
        for name, priorities in seen.items():
            called = ask.repository.pipelines[name]

            def spy(
                *given: Any, submit: Any = called.submit_nowait, to: Any = priorities, **keys: Any
            ) -> Any:
                to.append(given[2])
                return submit(*given, **keys)

            called.submit_nowait = spy  # type: ignore[method-assign]
        pipeline = ask.repository.pipelines["both"]
        for priority in (None, 1, 4):
            await pipeline({"data": ROWS, "request_size": 2}, priority=priority)
    assert seen == {"few": [None, 1, None], "many": [None, 1, 4]}


async def test_inputs_and_outputs_may_have_other_shapes_for_the_steps(
    double: PipelineConfig,
) -> None:
    shapes = {"IN": {"from": [1, 2], "to": [2]}, "OUT": {"from": [2], "to": [2, 1]}}
    inputs, outputs = ports("IN", shape=(-1, 1, 2)), ports("OUT", shape=(-1, 2, 1))
    given: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
    both = ensemble(step("double", "X=IN", "Y=OUT"), reshape=shapes, **given)
    async with serving(double, both) as ask:
        answer = await ask(ROWS[:, None], request_size=2)
        assert answer.tolist() == (ROWS * 2)[:, :, None].tolist()
        with pytest.raises(InvalidInput, match=r"'IN' has shape \[2, 2\]: expected \[1, 2\]"):
            await ask()
    with pytest.raises(ConfigError, match="'lost' is neither an input nor an output"):
        ensemble(step("double", "X=IN", "Y=OUT"), reshape={"lost": shapes["IN"]})


async def test_callers_of_the_ensemble_and_of_its_model_share_batches() -> None:
    gate = threading.Event()
    batches: list[int] = []

    class Held(Backend):
        def forward(self, batch: list[Item]) -> None:
            batches.append(len(batch))
            assert gate.wait(BOUND)
            for item in batch:
                item["result"] = item["data"]

    both = ensemble(step("held", "X=IN", "Y=OUT"))
    async with serving(model("held", Held, ports("X"), ports("Y"), max=8), both) as ask:
        held = ask.repository.pipelines["held"]
        asked = [asyncio.ensure_future(ask(ROWS[:1]))]
        await until(lambda: batches)
        asked += [asyncio.ensure_future(ask(ROWS[:1])) for _ in range(2)]
        direct = asyncio.ensure_future(held({"data": ROWS[:1]}))
        await until(lambda: queued(held, "held") == 3)
        gate.set()
        await asyncio.gather(*asked, direct)
    assert batches == [1, 3]
