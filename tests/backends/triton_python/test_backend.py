"""`TritonPython` on a thread: how it runs a model, and what it makes of what a model does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, ConfigError, InvalidInput, ModelError
from penstock.backends.item import Item, RequestFacts
from penstock.backends.sequences.sequence import Sequence
from penstock.backends.triton_python import auto_complete
from penstock.backends.triton_python.backend import TritonPython, TritonPythonParams

HEAD = """
import numpy as np
import triton_python_backend_utils as pb_utils


def input_of(request, name="IN"):
    return pb_utils.get_input_tensor_by_name(request, name)


def out(array):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])


class TritonPythonModel:
"""

CONFIG: dict[str, Any] = {
    "name": "m",
    "max_batch_size": 4,
    "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]}],
}

Make = Callable[..., TritonPython]


def write(folder: Path, body: str, head: str = HEAD) -> Path:
    file = folder / "m" / "1" / "model.py"
    file.parent.mkdir(parents=True)
    indented = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    file.write_text(head + indented)
    return file


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[TritonPython] = []

    def make(body: str, *, head: str = HEAD, instance: int = 0, **config: Any) -> TritonPython:
        write(tmp_path, body, head)
        context = Context("m", "m", tmp_path / "m", instance=instance)
        backend = TritonPython()
        made.append(backend)
        given = {"model": "1/model.py", "model_config": {**CONFIG, **config}}
        backend.init(TritonPythonParams.model_validate(given), context)
        return backend

    yield make
    for backend in made:
        backend.close()


def run(backend: TritonPython, *values: Any, **keys: Any) -> list[Item]:
    batch: list[Item] = [{"data": value, **keys} for value in values]
    backend.forward(batch)
    return batch


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def test_items_of_a_batch_are_requests_of_one_execute(make: Make) -> None:
    backend = make("""
def execute(self, requests):
    return [out(input_of(request).as_numpy() + len(requests)) for request in requests]
""")
    assert [item["result"].tolist() for item in run(backend, row(1), row(2))] == [[[3]], [[4]]]
    assert backend.signature is not None and backend.signature.batched
    assert backend.signature.inputs == (("IN", "float32", (-1, -1), False),)


def test_a_model_can_change_what_it_gets_and_keep_what_it_returns(make: Make) -> None:
    backend = make("""
def initialize(self, args):
    self.kept = np.zeros((1, 1), np.float32)

def execute(self, requests):
    array = input_of(requests[0]).as_numpy()
    array += 1
    self.kept += array
    return [out(self.kept)]
""")
    given = row(1)
    first = run(backend, given)[0]["result"]
    second = run(backend, given)[0]["result"]
    assert (given.tolist(), first.tolist(), second.tolist()) == ([[1]], [[2]], [[4]])


class OnGpu:
    """Stands for a tensor of torch on a GPU."""

    is_cuda = True

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def detach(self) -> OnGpu:
        return self

    def contiguous(self) -> OnGpu:
        return self

    def clone(self) -> OnGpu:
        return self

    def cpu(self) -> np.ndarray:
        return self.array


@pytest.mark.parametrize("cpu_only", ["yes", "no"])
def test_where_inputs_are(make: Make, cpu_only: str) -> None:
    backend = make(
        """
def execute(self, requests):
    return [out(np.array([[input_of(request).is_cpu()]], np.float32)) for request in requests]
""",
        parameters={"FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": cpu_only}},
    )
    item = run(backend, OnGpu(row(1)))[0]
    assert item["result"].tolist() == [[cpu_only == "yes"]]


def test_an_item_that_is_not_the_models_fails_alone(make: Make) -> None:
    backend = make(
        """
def execute(self, requests):
    return [out(input_of(request).as_numpy()) for request in requests]
""",
        input=[
            *CONFIG["input"],
            {"name": "MORE", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        ],
    )
    good = [row(1), None]
    wrong = [
        row(1),
        [row(1)],
        [None, None],
        [np.zeros((1, 1)), None],
        {"IN": row(1), "ELSE": row(1)},
        [["x"], None],
    ]
    named = {"IN": row(1)}
    items = run(backend, good, *wrong, named)
    assert items[0]["result"].tolist() == items[-1]["result"].tolist() == [[1]]
    errors = [item["error"] for item in items[1:-1]]
    assert all(isinstance(error, InvalidInput) for error in errors)
    assert [str(error) for error in errors[:5]] == [
        "expected 2 arrays (IN, MORE) in data, found ndarray",
        "expected 2 arrays (IN, MORE) in data, found 1 values",
        "input 'IN' is missing",
        "input 'IN' can't be read: input 'IN' has dtype float64, expected float32",
        "data has 'ELSE': the model's inputs are IN, MORE",
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return None", "Expected a list in the execute return, found type '<class 'NoneType'>'."),
        ("return []", "InferenceRequest(s) size is:2, and InferenceResponse(s) size is:0"),
        (
            "return [5, 5]",
            "Expected an 'InferenceResponse' object in the execute function return list, found "
            "type '<class 'int'>'.",
        ),
    ],
)
def test_what_execute_does_wrong_fails_all_requests(make: Make, body: str, words: str) -> None:
    backend = make(f"""
def execute(self, requests):
    {body}
""")
    items = run(backend, row(1), row(2))
    assert all(isinstance(item["error"], ModelError) for item in items)
    for item in items:
        text = str(item["error"])
        assert text.startswith("Failed to process the request(s) for model 'm_0_0', message: ")
        assert text.endswith(words)


def test_codes_of_errors(make: Make) -> None:
    backend = make("""
def execute(self, requests):
    codes = pb_utils.TritonError
    return [
        pb_utils.InferenceResponse(error=codes(code, getattr(codes, code)))
        for request in requests
        for code in [input_of(request).as_numpy()[0, 0].decode()]
    ]
""", input=[{"name": "IN", "data_type": "TYPE_STRING", "dims": [1]}])  # fmt: skip
    expected = {
        "UNKNOWN": ("unknown", 400),
        "INTERNAL": ("model_error", 500),
        "NOT_FOUND": ("not_found", 404),
        "INVALID_ARG": ("invalid_input", 400),
        "UNAVAILABLE": ("unavailable", 503),
        "UNSUPPORTED": ("unsupported", 501),
        "ALREADY_EXISTS": ("already_exists", 400),
        "CANCELLED": ("cancelled", 400),
    }
    items = run(backend, *([[name]] for name in expected))
    found = [(str(item["error"]), item["error"].code, item["error"].status) for item in items]
    assert found == [(name, *code) for name, code in expected.items()]


def test_execute_may_be_a_coroutine(make: Make) -> None:
    backend = make("""
async def execute(self, requests):
    import asyncio
    self.tasks = getattr(self, "tasks", [])
    await asyncio.gather(*(asyncio.sleep(0) for _ in requests))
    self.tasks.append(asyncio.create_task(asyncio.Event().wait()))  # still there at the end
    return [out(np.full((1, 1), len(self.tasks), np.float32)) for _ in requests]
""")
    assert [run(backend, row(0))[0]["result"].tolist() for _ in range(2)] == [[[1]], [[2]]]


def test_a_request_can_be_run_again(make: Make) -> None:
    backend = make("""
def execute(self, requests):
    responses = []
    for request in requests:
        self.count = getattr(self, "count", 0) + 1
        if self.count < 4:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
            responses.append(None)
        else:
            responses.append(out(np.full((1, 1), self.count, np.float32)))
    return responses
""")
    assert [item["result"].tolist() for item in run(backend, row(1), row(2))] == [[[5]], [[4]]]


def test_a_rescheduled_request_has_no_response(make: Make) -> None:
    backend = make("""
def execute(self, requests):
    requests[0].set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
    return [out(input_of(requests[0]).as_numpy())]
""")
    assert "Expected a None object" in str(run(backend, row(1))[0]["error"])


def test_steps_of_sequences_have_control_inputs(make: Make) -> None:
    controls: list[tuple[str, str, dict[str, Any]]] = [
        ("START", "CONTROL_SEQUENCE_START", {"int32_false_true": [0, 1]}),
        ("READY", "CONTROL_SEQUENCE_READY", {"bool_false_true": [False, True]}),
        ("END", "CONTROL_SEQUENCE_END", {"fp32_false_true": [-1.0, 1.0]}),
        ("ID", "CONTROL_SEQUENCE_CORRID", {"data_type": "TYPE_UINT64"}),
        ("NAME", "CONTROL_SEQUENCE_CORRID", {"data_type": "TYPE_STRING"}),
    ]
    backend = make(
        """
def execute(self, requests):
    [request] = requests
    names = ["START", "READY", "END", "ID", "NAME"]
    tensors = [input_of(request, name).as_numpy() for name in names]
    assert all(tensor.shape == (1, 1) for tensor in tensors), tensors
    seen = [float(tensor[0, 0]) for tensor in tensors]
    return [out(np.array([[*seen, request.correlation_id(), request.flags()]], np.float32))]
""",
        sequence_batching={
            "control_input": [
                {"name": name, "control": [{"kind": kind, **values}]}
                for name, kind, values in controls
            ]
        },
    )
    sequence = Sequence(7)
    assert run(backend, row(1), sequence=sequence)[0]["result"].tolist() == [[1, 1, -1, 7, 7, 7, 1]]
    sequence.start, sequence.end = False, True
    assert run(backend, row(1), sequence=sequence)[0]["result"].tolist() == [[0, 1, 1, 7, 7, 7, 2]]
    facts = RequestFacts(7, 3)
    both = run(backend, row(1), sequence=sequence, request_facts=facts)
    assert both[0]["result"].tolist() == [[1, 1, 1, 7, 7, 7, 3]]
    unfit = run(backend, row(1), sequence=Sequence("camera"))[0]["error"]
    assert "whole numbers (uint64)" in str(unfit)


def test_initialize_and_finalize(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    backend = make(
        """
def initialize(self, args):
    print(sorted(args), args["model_instance_name"], args["model_instance_kind"], end=" ")
    print(args["model_instance_device_id"], args["model_version"], args["model_name"])

def execute(self, requests):
    pass

def finalize(self):
    print("finalized")
    raise ValueError("too late")
""",
        instance=3,
        instance_group=[
            {"name": "a", "kind": "KIND_CPU", "count": 2},
            {"name": "b", "kind": "KIND_GPU", "count": 1, "gpus": [0, 2]},
        ],
    )
    backend.close()
    names = ["config", "instance_device_id", "instance_kind", "instance_name"]
    keys = [f"model_{name}" for name in [*names, "name", "repository", "version"]]
    assert capsys.readouterr().out.splitlines() == [f"{keys} b_0 GPU 2 1 m", "finalized"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def execute(self: pass", "SyntaxError"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("def initialize(self, args): raise OSError('no disk')", "OSError: no disk"),
        ("def initialize(self, args): pass", "does not implement `execute` method"),
    ],
)
def test_a_model_that_does_not_load(make: Make, body: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        make(body + ("" if "execute" in body or "args): pass" in body else "\ndef execute(): 0"))


def test_a_check_reads_the_file_and_runs_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "raise SystemExit")
    context = Context("m", "m", tmp_path / "m", opens_only=True)
    params = TritonPythonParams.model_validate({"model": "1/model.py", "model_config": CONFIG})
    backend = TritonPython()
    with closing(backend):
        backend.init(params, context)
        file.write_text("def execute(self: pass")
    for words in ("SyntaxError", "FileNotFoundError"):
        fresh = Context("m", "m", tmp_path / "m", opens_only=True)
        with pytest.raises(BackendError, match=words):
            TritonPython().init(params, fresh)
        file.unlink(missing_ok=True)


def test_a_file_without_the_class(make: Make) -> None:
    with pytest.raises(BackendError, match="has no class TritonPythonModel"):
        make("pass", head="class Other:\n")


def test_files_beside_a_model_are_its_own(tmp_path: Path) -> None:
    backends = []
    for name in ("a", "b"):
        file = write(
            tmp_path / name,
            """
def execute(self, requests):
    import late
    from .near import WORD as near
    words = (helper.WORD, inner.WORD, near, late.WORD)
    return [out(np.array([[word == words[0] for word in words]], np.float32))] * len(requests)
""",
            "import helper\nfrom packed import inner\n" + HEAD,
        )
        for beside in ("helper", "near", "late", "packed/inner"):
            path = file.parent / f"{beside}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"WORD = {name!r}\n")
        backend = TritonPython()
        given = {"model": "1/model.py", "model_config": CONFIG}
        context = Context("m", "m", file.parent.parent)
        backend.init(TritonPythonParams.model_validate(given), context)
        backends.append(backend)
    with closing(backends[0]), closing(backends[1]):
        assert run(backends[0], row(1))[0]["result"].tolist() == [[1, 1, 1, 1]]
        assert run(backends[1], row(1))[0]["result"].tolist()[0][:3] == [1, 1, 1]
    assert not {"helper", "packed", "packed.inner"} & set(sys.modules)


HELPED = "import helper\nfrom .helper import WORD\n" + HEAD


@pytest.mark.parametrize(
    ("body", "head"),
    [
        ("def execute(self, requests):\n    return []", HELPED),
        ("execute = None", HELPED),
        ("pass", HELPED + "    raise ValueError\n"),
        ("pass", HELPED.replace("TritonPythonModel", "Other")),
    ],
    ids=["closed", "not initialized", "not imported", "without the class"],
)
def test_nothing_of_a_model_stays_in_the_interpreter(tmp_path: Path, body: str, head: str) -> None:
    file = write(tmp_path, body, head)
    (file.parent / "helper.py").write_text("WORD = 1\n")
    before = set(sys.modules)
    backend = TritonPython()
    given = {"model": "1/model.py", "model_config": CONFIG}
    works = "return []" in body
    with nullcontext() if works else pytest.raises(BackendError):
        backend.init(
            TritonPythonParams.model_validate(given), Context("m", "m", file.parent.parent)
        )
    backend.close()
    new = set(sys.modules) - before
    assert not [name for name in new if "helper" in name or name.startswith("_penstock_triton")]


# auto-completion


COMPLETES = """
@staticmethod
def auto_complete_config(config):
    print("noise")
    config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]})
    return config
"""


def test_a_child_completes_a_config(tmp_path: Path) -> None:
    file = write(tmp_path, COMPLETES)
    completed = auto_complete.complete(file, {"name": "m", "output": []})
    assert completed["output"] == [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]}]
    file.write_text("import os; os._exit(3)")
    with pytest.raises(ConfigError, match="ended its process with code 3"):
        auto_complete.complete(file, {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (COMPLETES, ""),
        ("pass", ""),
        (COMPLETES.replace("return config", "return 5"), "must return a valid pb.ModelConfig"),
        (COMPLETES.replace("print", "raise ValueError"), "ValueError: noise"),
        ("raise ValueError('at import')", "ValueError: at import"),
    ],
)
def test_what_auto_complete_config_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    answer = auto_complete.completed_by(write(tmp_path, body), '{"name": "m", "output": []}')
    if words:
        assert words in answer["error"]
    else:
        assert answer["config"]["name"] == "m"


def test_tensors_have_the_models_shape_inside_and_the_clients_outside(make: Make) -> None:
    backend = make(
        """
def execute(self, requests):
    self.seen = [input_of(request).as_numpy().shape for request in requests]
    return [out(np.full(shape, 7, np.float32)) for shape in self.seen]
""",
        input=[{"name": "IN", "data_type": "TYPE_FP32", "dims": [2, 2], "reshape": {"shape": [4]}}],
        output=[
            {"name": "OUT", "data_type": "TYPE_FP32", "dims": [1, 4], "reshape": {"shape": [4]}}
        ],
    )
    good, wrong, listed = run(
        backend, np.zeros((1, 2, 2), np.float32), row(1, 2), [[[0.0, 1.0], [2.0, 3.0]]]
    )
    assert good["result"].shape == listed["result"].shape == (1, 1, 4)
    assert str(wrong["error"]) == "input 'IN' can't be read: found shape (1, 2), expected (2, 2)"


def test_strings_are_bytes(make: Make) -> None:
    backend = make(
        """
def execute(self, requests):
    return [out(input_of(request).as_numpy()) for request in requests]
""",
        input=[{"name": "IN", "data_type": "TYPE_STRING", "dims": [1]}],
        output=[{"name": "OUT", "data_type": "TYPE_STRING", "dims": [1]}],
    )
    assert backend.signature is not None
    assert backend.signature.inputs == (("IN", "object", (-1, 1), False),)
    (item,) = run(backend, np.array([[b"\xff"]], object))
    assert item["result"].tolist() == [[b"\xff"]]
