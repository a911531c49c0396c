"""The table of the fields of a Triton model configuration."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.text_format import Parse

from penstock.pipelines.triton.fields.classify import (
    Classified,
    classify,
    is_map,
    line_of,
    refusals,
)
from penstock.pipelines.triton.fields.table import FIELDS
from penstock.pipelines.triton.fields.treatments import BACKENDS, Treatment
from penstock.pipelines.triton.messages import new_config


def classified(text: str, backend: str | None = None) -> dict[str, Classified]:
    return {one.path: one for one in classify(Parse(text, new_config()), backend)}


def fields_of(message: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in message.fields:
        path = prefix + field.name
        yield path, field
        if is_map(field):
            value = field.message_type.fields_by_name["value"]
            if value.message_type is not None and path != "parameters":
                yield from fields_of(value.message_type, f"{path}.*.")
        elif field.message_type is not None:
            yield from fields_of(field.message_type, f"{path}.")


ALL_FIELDS = dict(fields_of(new_config().DESCRIPTOR))


def refused_as_a_whole(path: str, backend: str) -> bool:
    """Return whether a message that contains the field is refused for this backend."""
    names = path.split(".")
    containers = [".".join(names[:end]) for end in range(1, len(names))]
    return any(
        container in FIELDS and line_of(container, backend).treatment is Treatment.REFUSED
        for container in containers
    )


def test_each_field_of_the_message_has_a_line_for_every_backend_and_value() -> None:
    without = [
        path
        for path in ALL_FIELDS
        if path not in FIELDS and not all(refused_as_a_whole(path, name) for name in BACKENDS)
    ]
    assert without == []
    conditional = {path for path, lines in FIELDS.items() if lines[-1].backends or lines[-1].values}
    assert {path.partition(".")[0] for path in conditional} == {"parameters"}
    assert "parameters.*" not in conditional


def test_each_line_is_of_a_field_of_the_message() -> None:
    for path in FIELDS:
        container, _, key = path.rpartition(".")
        field = ALL_FIELDS.get(container) or ALL_FIELDS.get(path.split(".")[0])
        assert path in ALL_FIELDS or (field is not None and is_map(field) and key), path


def test_each_line_says_something_for_backends_and_values_that_there_are() -> None:
    for path, lines in FIELDS.items():
        field = ALL_FIELDS.get(path)
        for line in lines:
            assert line.words and line.words[-1] not in ".,;:"
            assert set(line.backends) <= set(BACKENDS)
            if field is not None and field.enum_type is not None:
                assert set(line.values) <= set(field.enum_type.values_by_name)
        assert len(lines) == 1 or lines[-1] not in lines[:-1]


def test_every_field_that_is_set_is_classified_once() -> None:
    found = classified(
        """
        name: "m" backend: "onnxruntime" max_batch_size: 8
        input { name: "A" dims: 4 reshape { shape: [2, 2] } }
        input { name: "B" data_type: TYPE_BOOL }
        dynamic_batching { priority_queue_policy { key: 2 value { timeout_action: DELAY } } }
        instance_group { kind: KIND_GPU gpus: [0, 1] } optimization {}
        parameters { key: "execution_mode" value { string_value: "1" } }
        """
    )
    assert {path: one.treatment.value for path, one in found.items()} == {
        "name": "honoured",
        "backend": "honoured",
        "max_batch_size": "honoured",
        "input[0].name": "honoured",
        "input[0].dims": "honoured",
        "input[0].reshape.shape": "honoured",
        "input[1].name": "honoured",
        "input[1].data_type": "honoured",
        "dynamic_batching.priority_queue_policy.2.timeout_action": "honoured",
        "instance_group[0].kind": "approximated",
        "instance_group[0].gpus": "approximated",
        "optimization": "ignored",
        "parameters.execution_mode": "honoured",
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('backend: "dali"', "backend"),
        ('backend: "made_up"', "backend"),
        ('platform: "tensorflow_savedmodel"', "platform"),
        ('backend: "onnxruntime" runtime: "other.so"', "runtime"),
        ('backend: "onnxruntime" batch_input { source_input: "A" }', "batch_input[0]"),
        (
            'backend: "onnxruntime" input { name: "A" allow_ragged_batch: true }',
            "input[0].allow_ragged_batch",
        ),
        (
            'backend: "onnxruntime" parameters { key: "made_up" value { string_value: "1" } }',
            "parameters.made_up",
        ),
        (
            'backend: "onnxruntime" model_transaction_policy { decoupled: true }',
            "model_transaction_policy.decoupled",
        ),
        (
            'backend: "python" parameters { key: "PENSTOCK_EXECUTOR" value { string_value: "x" } }',
            "parameters.PENSTOCK_EXECUTOR",
        ),
        (
            'backend: "onnxruntime" sequence_batching { iterative_sequence: true }',
            "sequence_batching.iterative_sequence",
        ),
        (
            'backend: "python" model_repository_agents { agents { name: "checksum" } }',
            "model_repository_agents.agents[0]",
        ),
    ],
)
def test_what_could_change_results_is_refused_and_named(text: str, path: str) -> None:
    problems = refusals(list(classified(text).values()), "config.pbtxt")
    assert [(problem.key, problem.file) for problem in problems] == [(path, "config.pbtxt")]


def test_a_python_model_has_any_parameters() -> None:
    text = 'parameters { key: "memory.size" value { string_value: "1" } }'
    assert classified(text, "python")["parameters.memory.size"].treatment == "honoured"
    assert classified(text, "onnxruntime")["parameters.memory.size"].treatment == "refused"
    assert classified(text, "ensemble")["parameters.memory.size"].treatment == "ignored"


def test_a_field_without_a_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {path: lines for path, lines in FIELDS.items() if "eager" not in path}
    monkeypatch.setattr("penstock.pipelines.triton.fields.classify.FIELDS", without)
    found = classified("optimization { eager_batching: true }")
    assert found["optimization.eager_batching"].treatment == "refused"
