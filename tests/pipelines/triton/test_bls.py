"""Triton's Python models that call others, and those that answer by response senders.

What is expected is what the real Triton (2.51) answered to these models, but for codes: it says
INTERNAL for every failed call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr

from penstock import Settings, create_app

LOOPS = ("uvloop",)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADD = """
import json
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        a = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
        if a[0] == -1:
            error = pb_utils.TritonError("no -1", pb_utils.TritonError.ALREADY_EXISTS)
            return pb_utils.InferenceResponse(error=error)
        if a[0] == -2:
            raise ValueError("no -2")
        if a[0] == -3:
            ends = time.monotonic() + 30
            while not request.is_cancelled() and time.monotonic() < ends:
                time.sleep(0.005)
        seen = {
            "id": request.request_id(),
            "sequence": [request.correlation_id(), request.flags()],
            "parameters": json.loads(request.parameters()),
        }
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("SUM", np.array([a.sum()], np.float32)),
            pb_utils.Tensor("SEEN", np.array([json.dumps(seen)], object)),
        ])
"""

ADD_CONFIG = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] },
         { name: "SEEN" data_type: TYPE_STRING dims: [ 1 ] } ]
"""

TOTAL = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.totals[request.correlation_id()] = 0
            a = pb_utils.get_input_tensor_by_name(request, "A").as_numpy()
            self.totals[request.correlation_id()] += a.sum()
            total = np.array([self.totals[request.correlation_id()]], np.float32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SUM", total)]))
        return responses
"""

COUNT = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            n = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
            sender = request.get_response_sender()
            if n == -1:
                raise ValueError("no -1")
            if n == -2:
                error = pb_utils.TritonError("no -2", pb_utils.TritonError.UNAVAILABLE)
                sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
                continue
            if n == -3:
                return []
            self.threads.append(threading.Thread(target=self.count, args=(sender, n)))
            self.threads[-1].start()

    def count(self, sender, n):
        for number in range(n):
            if sender.is_cancelled():
                break
            tensor = pb_utils.Tensor("OUT", np.array([number], np.int32))
            last = n == 3 and number == 2
            sender.send(pb_utils.InferenceResponse([tensor]), flags=FINAL if last else 0)
        if n != 3:
            sender.send(flags=FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
"""

TOTAL_CONFIG = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] } ]
sequence_batching { max_sequence_idle_microseconds: 60000000 }
"""

COUNT_CONFIG = """
backend: "python"
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""

CALLS = """
import asyncio
import json
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def add(*a, model="add", outputs=("SUM",), name="A", dtype=np.float32, **more):
    return pb_utils.InferenceRequest(
        model_name=model,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, np.array(a or (1, 2), dtype))],
        **more,
    )


def count(n):
    return add(n, model="count", outputs=["OUT"], name="N", dtype=np.int32)


def shown(response):
    if response.has_error():
        return [response.error().code().name, response.error().message()]
    found = {tensor.name(): tensor.as_numpy().tolist() for tensor in response.output_tensors()}
    if "SEEN" in found:
        found["SEEN"] = json.loads(found["SEEN"][0])
    return found


def counted(n):
    return [shown(response) for response in count(n).exec(decoupled=True)]


async def several():
    answers = await asyncio.gather(*[add(n).async_exec() for n in range(3)])
    responses = await count(2).async_exec(decoupled=True)
    return [shown(answer) for answer in [*answers, *responses]]


def cancelled():
    responses = count(1000).exec(decoupled=True)
    first = [shown(next(responses))]
    responses.cancel()
    return first + [shown(response) for response in responses][-1:]


def stepped(*flags):
    requests = [add(2, model="total", correlation_id=9, flags=each) for each in flags]
    return [shown(request.exec()) for request in requests]


def twice():
    responses = count(1).exec(decoupled=True)
    return [[shown(response) for response in responses] for _ in range(2)]


def threaded():
    found = []
    thread = threading.Thread(target=lambda: found.append(shown(add().exec())))
    thread.start()
    thread.join()
    return found


def refused():
    words = []
    sender = add().get_response_sender()
    for arguments in ({}, {"flags": 7}, {"flags": FINAL}):
        try:
            sender.send(**arguments)
        except pb_utils.TritonModelException as error:
            words.append(str(error))
    return words


def ordered():
    found = [pb_utils.is_model_ready(*of) for of in (["add"], ["no"], ["add", "1"], ["add", "9"])]
    pb_utils.unload_model("other")
    found.append(pb_utils.is_model_ready("other"))
    pb_utils.load_model("other")
    found.append(pb_utils.is_model_ready("other"))
    pb_utils.unload_model("no")
    try:
        pb_utils.load_model("no")
    except pb_utils.TritonModelException as error:
        found.append(str(error))
    return found


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        command = pb_utils.get_input_tensor_by_name(request, "COMMAND").as_numpy()[0].decode()
        if command.startswith("send"):
            return self.send(request.get_response_sender(), command)
        return self.response(eval(command))

    def response(self, found):
        tensor = pb_utils.Tensor("OUT", np.array([json.dumps(found)], object))
        return pb_utils.InferenceResponse([tensor])

    def send(self, sender, command):
        if command == "send":
            sender.send(self.response("sent"), flags=FINAL)
        if command == "send later":
            threading.Timer(0.01, sender.send, [self.response(command), FINAL]).start()
        if command == "send twice":
            sender.send(self.response(command))
            sender.send(flags=FINAL)
            return self.response("dropped")
        if command == "send and fail":
            sender.send(self.response(command))
            sender.send(self.response("too much"), flags=FINAL)
        if command == "send nothing":
            try:
                sender.send(flags=FINAL)
            except pb_utils.TritonModelException as error:
                return self.response(str(error))
        return None
"""

CALLS_CONFIG = """
backend: "python"
input [ { name: "COMMAND" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
DECOUPLED = "model_transaction_policy { decoupled: true }"
THREAD = 'parameters { key: "PENSTOCK_EXECUTOR" value: { string_value: "thread" } }'


def write_model(folder: Path, name: str, config: str, model: str) -> None:
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config)
    (folder / name / "1" / "model.py").write_text(model)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    folder = tmp_path_factory.mktemp("bls")
    write_model(folder, "add", ADD_CONFIG + THREAD, ADD)
    write_model(folder, "other", ADD_CONFIG + THREAD, ADD)
    write_model(folder, "count", COUNT_CONFIG + DECOUPLED + THREAD, COUNT)
    write_model(folder, "counts", COUNT_CONFIG + DECOUPLED, COUNT)
    write_model(folder, "total", TOTAL_CONFIG + THREAD, TOTAL)
    write_model(folder, "thread", CALLS_CONFIG + THREAD, CALLS)
    write_model(folder, "process", CALLS_CONFIG, CALLS)
    app = create_app(folder, settings=Settings(admin_token=SecretStr("t")))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


UNKNOWN = (
    "Model no - Error when running inference: Request for unknown model: 'no' is not found (there "
    "is no pipeline 'no')"
)
REFUSED = "Unable to send response. "


@pytest.mark.parametrize("model", ["thread", "process"])
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("shown(add().exec())", {"SUM": [3]}),
        (
            "shown(add(outputs=['SEEN'], request_id='me', correlation_id=7, flags=1, "
            "parameters={'a': 1}).exec())",
            {"SEEN": {"id": "me", "sequence": [7, 1], "parameters": {"a": 1}}},
        ),
        ("sorted(shown(add(outputs=[]).exec()))", ["SEEN", "SUM"]),
        ("shown(add(model='no').exec())", ["NOT_FOUND", UNKNOWN]),
        (
            "shown(add(outputs=['NO']).exec())",
            [
                "INVALID_ARG",
                "Model add - Error when running inference: unexpected inference output 'NO' for "
                "model 'add'",
            ],
        ),
        (
            "shown(add(dtype=np.int32).exec())",
            [
                "INVALID_ARG",
                "Model add - Error when running inference: inference input 'A' data-type is "
                "'INT32', but model 'add' expects 'FP32'",
            ],
        ),
        ("shown(add(-1).exec())", ["ALREADY_EXISTS", "no -1"]),
        (
            "shown(add(-2).exec())",
            [
                "INTERNAL",
                "Failed to process the request(s) for model 'add_0', message: ValueError: no -2",
            ],
        ),
        (
            "shown(add(-3, timeout=200_000).exec())",
            ["UNAVAILABLE", "Request timeout expired: the deadline passed while the call ran"],
        ),
        ("counted(2)", [{"OUT": [0]}, {"OUT": [1]}, {}]),
        ("counted(3)", [{"OUT": [0]}, {"OUT": [1]}, {"OUT": [2]}]),
        ("counted(0)", [{}]),
        ("counted(-2)", [["UNAVAILABLE", "no -2"]]),
        (
            "[shown(each) for each in add(model='no').exec(decoupled=True)]",
            [["NOT_FOUND", UNKNOWN]],
        ),
        ("[shown(each) for each in add().exec(decoupled=True)]", [{"SUM": [3]}]),
        ("'using the decoupled' in shown(count(2).exec())[1]", True),
        ("cancelled()", [{"OUT": [0]}, ["CANCELLED", "the request was cancelled"]]),
        ("twice()", [[{"OUT": [0]}, {}]] * 2),
        ("threaded()", [{"SUM": [3]}]),
        ("stepped(1, 0, 2, 3)", [{"SUM": [2]}, {"SUM": [4]}, {"SUM": [6]}, {"SUM": [2]}]),
        ("[error[0] for error in stepped(0)]", ["INVALID_ARG"]),
        (
            "asyncio.run(several())",
            [{"SUM": [n]} for n in range(3)] + [{"OUT": [0]}, {"OUT": [1]}, {}],
        ),
        (
            "refused()",
            [
                "Inference Response object must be provided when the response flags is set to "
                "zero.",
                REFUSED + "Unsupported flag provided.",
                REFUSED + "Response sender has no reference to the decoupled state of the model.",
            ],
        ),
        (
            "ordered()",
            [
                *(True, False, True, False, False, True),
                "Failed to load model: there is no pipeline 'no'",
            ],
        ),
        ("send", "sent"),
        ("send later", "send later"),
        ("send twice", "send twice"),
        ("send and fail", "send and fail"),
        (
            "send nothing",
            REFUSED + "Non-decoupled model cannot send complete final before sending a response.",
        ),
    ],
)
async def test_models_call_others(
    client: httpx.AsyncClient, model: str, command: str, expected: Any
) -> None:
    tensor = {"name": "COMMAND", "datatype": "BYTES", "shape": [1], "data": [command]}
    answer = await client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    found = json.loads(answer.json()["outputs"][0]["data"][0])
    assert found == expected


async def streamed(client: httpx.AsyncClient, model: str, n: int) -> list[Any]:
    answer = await client.post(f"/v2/models/{model}/generate_stream", json={"N": [n]})
    if answer.status_code != 200:
        return [answer.status_code, answer.json()["error"]]
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line]
    return [event.get("OUT", event.get("error")) for event in events]


@pytest.mark.parametrize(("model", "name"), [("count", "count_0"), ("counts", "counts_0")])
async def test_decoupled_models_answer_by_their_senders(
    client: httpx.AsyncClient, model: str, name: str
) -> None:
    assert await streamed(client, model, 2) == [0, 1]
    assert await streamed(client, model, 3) == [0, 1, 2]
    many = await asyncio.gather(*[streamed(client, model, 100) for _ in range(4)])
    assert many == [list(range(100))] * 4
    assert await streamed(client, model, -2) == [503, "no -2"]
    failed = f"Failed to process the request(s) for model '{name}', message: "
    assert await streamed(client, model, -1) == [500, failed + "ValueError: no -1"]
    assert await streamed(client, model, -3) == [
        500,
        f"{failed}Python model '{name}' is using the decoupled mode and the execute function must "
        "return None.",
    ]


@pytest.mark.parametrize("model", ["thread", "process"])
async def test_models_load_others_with_another_configuration(
    client: httpx.AsyncClient, model: str
) -> None:
    strings = {"by": {"string_value": model}, "PENSTOCK_EXECUTOR": {"string_value": "thread"}}
    config = {
        "backend": "python",
        "parameters": strings,
        "input": [{"name": "A", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "SUM", "data_type": "TYPE_FP32", "dims": [1]}],
    }
    command = f"pb_utils.load_model('other', config=json.dumps({config}))"
    tensor = {"name": "COMMAND", "datatype": "BYTES", "shape": [1], "data": [command]}
    answer = await client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    loaded = (await client.get("/v2/models/other/config")).json()
    assert loaded["parameters"] == strings
    assert loaded["input"][0]["dims"] in ([2], ["2"])
