"""TorchScriptTensor: TorchScript files, compared with the modules that they were made of."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.base import Context
from penstock.backends.engines.encryption import KEY_VARIABLE, WrongKeyError, encrypt
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from .modules import Named, Pair, Pool, Shout, Total, Twice

NAME = "TorchScriptTensor"


def close(result: Any, expected: Any) -> bool:
    return result.shape == expected.shape and bool(
        torch.allclose(result, expected.detach(), atol=1e-4, rtol=1e-4)
    )


def test_encrypted_models(
    scripted: Any, make: Any, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = tmp_path / "model.pt.encrypted"
    linear, data = torch.nn.Linear(3, 2), torch.rand(1, 3)
    hidden.write_bytes(encrypt(scripted(linear).read_bytes(), bytes([0x11] * 32)))
    monkeypatch.setenv(KEY_VARIABLE, "22" * 32)
    with pytest.raises(WrongKeyError, match=r"model\.pt\.encrypted can't be decrypted"):
        make(NAME, hidden)
    monkeypatch.setenv(KEY_VARIABLE, "11" * 32)
    assert close(run(make(NAME, hidden), data)[0], linear(data))


def test_resnet_gives_what_eager_torch_gives(
    resnet: Any, scripted: Any, make: Any, run: Any, images: Any
) -> None:
    data = images(3)
    expected = resnet(torch.from_numpy(data))
    backend = make(NAME, scripted(resnet, torch.zeros(1, 3, 64, 64)), max="4x3x64x64")
    backend.warm_up()
    assert backend.max == 4
    results = run(backend, *(data[index : index + 1] for index in range(3)))
    assert close(torch.cat(results), expected)
    assert all(
        type(result) is torch.Tensor and result.is_contiguous() and not result.is_inference()
        for result in results
    )


@pytest.mark.parametrize(
    "named",
    [
        lambda x, m: [x, m],
        lambda x, m: {"image": x, "mask": m},
        lambda x, m: {"mask": m, "image": x},
        lambda x, m: {"INPUT__0": x, "INPUT__1": m},
        lambda x, m: {"mask": m, "anything__0": x},
    ],
)
def test_inputs_in_order_by_name_or_by_index(
    scripted: Any, make: Any, run: Any, named: Any
) -> None:
    pair = Pair()
    backend = make(NAME, scripted(pair), max=8)
    items = [(torch.randn(1, 3), torch.randn(1, 2)) for _ in range(3)]
    for (x, mask), (first, second) in zip(
        items, run(backend, *(named(*tensors) for tensors in items)), strict=True
    ):
        assert close(first, pair.linear(x)) and close(second, mask + 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [np.zeros((1, 3), np.float32)],
            r"the model has 2 inputs \(image, mask\), but data holds 1",
        ),
        ({"image": np.zeros((1, 3))}, r"input 1 \(mask\) is missing"),
        (
            {"imgae": np.zeros((1, 3)), "mask": np.zeros((1, 2))},
            "input 'imgae' is unknown: the model has 2 inputs",
        ),
        ({"image": np.zeros((1, 3)), "x__0": np.zeros((1, 3))}, "input 'x__0' is given twice"),
        ({"x__0": np.zeros((1, 3)), "x__7": np.zeros((1, 3))}, "input 'x__7' is unknown"),
        (
            [np.zeros((1, 3)), "text"],
            r"input 1 \(mask\): expected a tensor or an array of numbers, found str",
        ),
        (
            [np.zeros((2, 3)), np.zeros((1, 2))],
            r"input 0 \(image\): expected 1 row as batch dimension, found shape 2x3: the "
            r"node's backend "
            r"does not say which axis of data is the batch. For 2 rows in one item, "
            r"set request_size = 2",
        ),
    ],
)
def test_inputs_that_do_not_fit_fail_their_item_alone(
    scripted: Any, make: Any, run: Any, data: Any, message: str
) -> None:
    backend = make(NAME, scripted(Pair()), max=8)
    with pytest.raises(InvalidInput, match=message):
        run(backend, data)
    good, bad = run(backend, [np.zeros((1, 3)), np.zeros((1, 2))], data)
    assert len(good) == 2 and isinstance(bad, InvalidInput)


class Most(torch.nn.Module):
    """The greatest number of each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.amax(x, 1)


def test_an_input_without_elements_that_the_model_can_not_take(
    scripted: Any, make: Any, run: Any
) -> None:
    backend = make(NAME, scripted(Most()), max=4)
    message = "can't compute with an input of shape 1x0, which has no elements"
    with pytest.raises(InvalidInput, match=message):
        run(backend, np.zeros((1, 0), np.float32))
    refused, other = run(backend, np.zeros((1, 0), np.float32), np.ones((1, 2), np.float32))
    assert isinstance(refused, InvalidInput) and other.tolist() == [1.0]


def test_inputs_and_outputs_in_the_nodes_order(scripted: Any, make: Any, run: Any) -> None:
    pair = Pair()
    backend = make(NAME, scripted(pair), input_reorder="1,0", output_reorder="1,0")
    x, mask = torch.randn(1, 3), torch.randn(1, 2)
    ((first, second),) = run(backend, [mask, x])
    assert close(first, mask + 1) and close(second, pair.linear(x))
    with pytest.raises(ConfigError, match=r"'0' names 1 inputs, but the model has image, mask"):
        make(NAME, scripted(pair), input_reorder="0")


@pytest.mark.parametrize(
    ("names", "outputs", "order"),
    [
        (["mask", "image"], ["OUTPUT__1"], [1]),
        (["INPUT__1", "INPUT__0"], ["OUTPUT__1", "OUTPUT__0"], [1, 0]),
        # neither arguments nor indexed: Triton takes the order of its configuration
        (["pixels", "where"], ["scores", "shifted"], [0, 1]),
    ],
)
def test_inputs_and_outputs_by_tritons_conventions(
    scripted: Any, make: Any, run: Any, names: list[str], outputs: list[str], order: list[int]
) -> None:
    pair = Pair()
    backend = make(NAME, scripted(pair), max=4, inputs=names, outputs=outputs)
    x, mask = torch.randn(1, 3), torch.randn(1, 2)
    given = [x, mask] if names[0] == "pixels" else [mask, x]
    expected = [pair(x, mask)[index] for index in order]
    for data in (given, dict(zip(names, given, strict=True))):
        (result,) = run(backend, data)
        results = result if isinstance(result, list) else [result]
        assert all(map(close, results, expected)) and len(results) == len(expected)
    with pytest.raises(InvalidInput, match="data holds 3"):
        run(backend, [*given, x])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"inputs": ["image"]}, r"inputs: image do not fit the model, which has 2 inputs"),
        ({"inputs": ["INPUT__0", "INPUT__2"]}, "do not fit the model"),
        ({"outputs": ["OUTPUT__2"]}, r"outputs: OUTPUT__2 are wanted, but the model has 2"),
        ({"reshape": {"imgae": {"from": [1], "to": []}}}, "reshape: names 'imgae'"),
    ],
)
def test_names_that_do_not_fit_the_model(scripted: Any, make: Any, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(NAME, scripted(Pair()), **keys)


class Added(torch.nn.Module):
    """Without weights: what it computes in is what comes."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a + 1, b + 1


def test_inputs_have_the_dtypes_that_are_given(scripted: Any, make: Any, run: Any) -> None:
    dtypes = {"x": "float64", "y": "bfloat16"}
    backend = make(NAME, scripted(Added()), max=4, inputs=["x", "y"], dtypes=dtypes)
    ((a, b),) = run(backend, [np.full((1, 1), 1e-9), np.ones((1, 1), np.float32)])
    assert a.dtype == torch.float64 and a.item() == 1 + 1e-9
    assert b.dtype == torch.bfloat16 and b.item() == 2
    plain = make(NAME, scripted(Added()), max=4)
    ((a, _),) = run(plain, [np.full((1, 1), 1e-9), np.ones((1, 1))])
    assert a.dtype == torch.float32
    with pytest.raises(ConfigError, match="dtypes: names 'z', and the inputs are a, b"):
        make(NAME, scripted(Added()), dtypes={"z": "float64"})


def test_a_dict_is_made_of_the_inputs_and_outputs_are_taken_from_one(
    scripted: Any, make: Any, run: Any
) -> None:
    backend = make(NAME, scripted(Named()), max=4, inputs=["b", "a"], outputs=["a", "sum"])
    (result,) = run(backend, [torch.ones(1, 2), torch.zeros(1, 2)])
    assert [part.tolist() for part in result] == [[[0, 0]], [[1, 1]]]
    with pytest.raises(InvalidInput, match="the inputs are b, a, but data holds 1"):
        run(backend, [torch.ones(1, 2)])


def test_shapes_differ_inside_and_outside_of_the_model(scripted: Any, make: Any, run: Any) -> None:
    reshape = {
        "image": {"from": [1, 3], "to": [3]},
        "OUTPUT__1": {"from": [2], "to": [2, 1]},
    }
    pair = Pair()
    backend = make(NAME, scripted(pair), max=4, reshape=reshape)
    x, mask = torch.randn(1, 1, 3), torch.zeros(1, 2)
    (first, second), refused = run(backend, [x, mask], [x[0], mask])
    assert close(first, pair.linear(x[0])) and second.tolist() == [[[1], [1]]]
    assert "input 0 (image): expected shape Nx1x3, found 1x3" in str(refused)
    texts = make(NAME, scripted(Shout()), max=4, reshape={"OUTPUT__0": {"from": [], "to": [1]}})
    (result,) = run(texts, ["a", "b"], request_size=2)
    assert result[0].tolist() == [["A"], ["B"]]


def test_any_size_and_several_in_one_item(scripted: Any, make: Any, run: Any, images: Any) -> None:
    backend = make(NAME, scripted(Pool()), max=8)
    small, large = images(1, 8), images(1, 16)
    results = run(backend, small, large, small * 2)
    assert [result.tolist() for result in results] == [
        Pool()(torch.from_numpy(image)).tolist() for image in (small, large, small * 2)
    ]
    (two,) = run(backend, images(2, 8), request_size=2)
    assert two.shape == (2, 3)


def test_texts(scripted: Any, make: Any, run: Any) -> None:
    backend = make(NAME, scripted(Shout()), max=8)
    results = run(
        backend, ["ab"], "cde", np.array(["é"]), [b"\xc3\xa9x"]
    )  # TorchScript's texts are UTF-8
    assert [(texts, lengths.tolist()) for texts, lengths in results] == [
        (["AB"], [2]),
        (["CDE"], [3]),
        (["é"], [2]),
        (["éX"], [3]),
    ]
    assert run(backend, ["a", "bb"], request_size=2)[0][0] == ["A", "BB"]
    with pytest.raises(
        InvalidInput, match=r"input 0 \(texts\): expected a list of texts, found int"
    ):
        run(backend, 3)
    with pytest.raises(InvalidInput, match="UTF-8"):
        run(backend, [b"\xff"])


def test_a_dict_of_tensors(scripted: Any, make: Any, run: Any) -> None:
    backend = make(NAME, scripted(Named()), max=8)
    items = [{"a": torch.randn(1, 2), "b": torch.randn(1, 2)} for _ in range(2)]
    items[1] = dict(reversed(items[1].items()))
    for item, (total, a) in zip(items, run(backend, *items), strict=True):
        assert close(total, item["a"] + item["b"]) and close(a, item["a"])
    sizes: list[int] = []
    model = backend.children[0].model

    def measured(tensors: dict[str, torch.Tensor]) -> Any:
        sizes.append(len(tensors["a"]))
        return model(tensors)

    backend.children[0].model = measured
    run(backend, *items)
    assert sizes == [2]  # items share a run although their names are in different order
    with pytest.raises(InvalidInput, match="expected a dict of tensors by name, found list"):
        run(backend, [torch.zeros(1, 2)])


def test_a_model_that_does_not_keep_items_apart(scripted: Any, make: Any, run: Any) -> None:
    backend = make(NAME, scripted(Total()), max=8, batched=True)
    assert run(backend, torch.ones(1, 2))[0].tolist() == [[1, 1]]
    with pytest.raises(
        BackendError,
        match="output 0 has 1 rows for a batch of 2: the model does not keep items apart; set "
        "batched = false",
    ):
        run(backend, torch.ones(1, 2), torch.ones(1, 2))


def test_a_model_with_other_rows_than_the_batch(scripted: Any, make: Any, run: Any) -> None:
    backend = make(NAME, scripted(Twice()), max=8, batched=True)
    assert run(backend, torch.ones(1, 2))[0].shape == (2, 2)
    with pytest.raises(BackendError, match="output 0 has 4 rows for a batch of 2"):
        run(backend, torch.ones(1, 2), torch.ones(1, 2))


def test_results_own_their_memory(scripted: Any, make: Any, run: Any) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    backend = make(NAME, scripted(Same(), torch.zeros(1, 2)), max=4)
    first, second = run(backend, torch.ones(1, 2), torch.ones(1, 2) * 2)
    run(backend, torch.zeros(1, 2), torch.zeros(1, 2))
    assert (first.tolist(), second.tolist()) == ([[1, 1]], [[2, 2]])
    assert first.untyped_storage().nbytes() == 8


def test_mean_std_and_precision(scripted: Any, make: Any, run: Any) -> None:
    data = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4), np.uint8)
    path = scripted(Pool())
    expected = Pool()(
        (torch.from_numpy(data) - torch.tensor([1.0, 2, 3]).view(3, 1, 1))
        / torch.tensor([2.0, 4, 8]).view(3, 1, 1)
    )
    backend = make(NAME, path, max="4x3x4x4", mean="1,2,3", std="2,4,8")
    backend.warm_up()
    assert close(torch.cat(run(backend, data[:1], data[1:])), expected)
    (half,) = run(
        make(NAME, path, mean="1,2,3", std="2,4,8", precision="bf16"), data, request_size=2
    )
    assert (
        half.dtype == torch.float32
        and torch.allclose(half, expected, rtol=0.02)
        and not torch.equal(half, expected)
    )
    with pytest.raises(ConfigError, match="std: must not contain 0"):
        make(NAME, path, std="1,0,1")
    with pytest.raises(InvalidInput, match="last axis of the image 1x4x5x6 has as many channels"):
        run(make(NAME, path, mean="1,2,3"), np.zeros((1, 4, 5, 6), np.uint8))


@pytest.mark.parametrize("doubles", [False, True])
def test_doubles_become_float32_unless_the_model_computes_in_float64(
    scripted: Any, make: Any, run: Any, doubles: Any
) -> None:
    module = torch.nn.Linear(3, 1).double() if doubles else torch.nn.Linear(3, 1)
    (result,) = run(make(NAME, scripted(module)), np.ones((1, 3)))
    assert result.dtype == (torch.float64 if doubles else torch.float32)


# options


def test_every_option_of_triton_by_both_names(
    scripted: Any, make: Any, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = scripted(Pair())
    names = {
        "DISABLE_OPTIMIZED_EXECUTION": True,
        "INFERENCE_MODE": False,
        "ENABLE_WEIGHT_SHARING": False,
        "ENABLE_CACHE_CLEANING": True,
        "DISABLE_CUDNN": False,
        "ENABLE_JIT_EXECUTOR": True,
        "ENABLE_JIT_PROFILING": True,
        "ENABLE_TENSOR_FUSER": True,
        "INTRA_OP_THREAD_COUNT": 1,
        "INTER_OP_THREAD_COUNT": torch.get_num_interop_threads(),
    }
    for keys in (names, {name.lower(): value for name, value in names.items()}):
        assert len(run(make(NAME, path, **keys), [torch.zeros(1, 3), torch.zeros(1, 2)])[0]) == 2
    with caplog.at_level(logging.WARNING, "penstock.torch"):
        make(NAME, path, enable_nvfuser="true")
    assert "ENABLE_NVFUSER has no effect: torch dropped nvFuser" in caplog.text


class Switches(torch.nn.Module):
    """Records torch's switches while it runs."""

    seen: list[Any]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(
            (
                torch.is_inference_mode_enabled(),
                torch.is_grad_enabled(),
                torch._C._get_graph_executor_optimize(),
            )
        )
        return x


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (True, False, True)),
        ({"INFERENCE_MODE": False}, (False, False, True)),
        ({"DISABLE_OPTIMIZED_EXECUTION": True}, (True, False, False)),
    ],
)
def test_switches_are_set_only_while_this_model_runs(
    scripted: Any, make: Any, run: Any, keys: Any, expected: Any
) -> None:
    backend = make(NAME, scripted(Pool()), **keys)
    probe = Switches()
    probe.seen = []
    backend.children[0].model = probe
    run(backend, torch.zeros(1, 3, 2, 2))
    assert probe.seen == [expected]
    assert torch._C._get_graph_executor_optimize() and torch.is_grad_enabled()


def test_two_models_must_agree_on_process_wide_options(scripted: Any, make: Any) -> None:
    path = scripted(Pair())
    make(NAME, path, ENABLE_JIT_PROFILING=True)
    make(NAME, path, ENABLE_JIT_PROFILING=True)
    with pytest.raises(
        ConfigError,
        match=r"\[node\] ENABLE_JIT_PROFILING: False wanted, but node 'node' of pipeline 'pipe' "
        r"has set it to True",
    ):
        make(NAME, path, ENABLE_JIT_PROFILING=False)


def test_instances_share_the_processors_and_set_the_threads_of_their_own_thread(
    scripted: Any, make: Any
) -> None:
    path = scripted(Pair())
    seen: dict[str, int] = {}

    def load(name: str, instances: int, **keys: Any) -> None:
        make(NAME, path, Context(node="node", instances=instances), **keys)
        seen[name] = torch.get_num_threads()
        torch.nn.functional.linear(torch.zeros(64, 64), torch.zeros(64, 64))

    def one_after_another() -> None:
        for arguments in (("many", 1000, {}), ("given", 1000, {"INTRA_OP_THREAD_COUNT": 3})):
            thread = threading.Thread(target=load, args=arguments[:2], kwargs=arguments[2])
            thread.start()
            thread.join()

    before = torch.get_num_threads()
    one_after_another()
    thread = threading.Thread(target=lambda: seen.update(other=torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == {"many": 1, "given": 3, "other": before}
    assert torch.get_num_threads() == before


def test_instances_share_weights_unless_sharing_is_off(scripted: Any, make: Any) -> None:
    path = scripted(Pair())
    models = [make(NAME, path).children[0].model for _ in range(2)]
    own = [make(NAME, path, ENABLE_WEIGHT_SHARING=False).children[0].model for _ in range(2)]
    half = make(NAME, path, precision="fp16").children[0].model
    assert models[0] is models[1]
    assert len({id(model) for model in (*models, *own, half)}) == 4


def test_many_requests_and_instances(scripted: Any, images: Any, resnet: Any) -> None:
    path = scripted(Pool())
    data = images(64, 8)

    async def ask() -> list[Any]:
        keys = {"backend": NAME, "model": str(path), "max": 4, "instance_num": 3}
        async with Pipeline.load({"pool": keys}) as pipeline:
            return await pipeline([{"data": image[None]} for image in data])

    import asyncio

    answers = asyncio.run(ask())
    assert close(
        torch.cat([answer["result"] for answer in answers]), Pool()(torch.from_numpy(data))
    )


# files


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_damaged_files(scripted: Any, make: Any, keep: Any) -> None:
    path = scripted(Pair())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        BackendError,
        match=rf"node 'node': TorchScriptTensor: the model {path} can't be loaded as TorchScript: "
        r"\w+",
    ):
        make(NAME, path)


def test_files_of_another_kind(tmp_path: Path, make: Any) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(BackendError, match=r"weights\.pt can't be loaded as TorchScript"):
        make(NAME, tmp_path / "weights.pt")
    with pytest.raises(BackendError, match=r"absent\.pt does not exist"):
        make(NAME, tmp_path / "absent.pt")


def test_arguments_must_be_tensors_or_texts(scripted: Any, make: Any, run: Any) -> None:
    class Counted(torch.nn.Module):
        def forward(self, x: torch.Tensor, count: int) -> torch.Tensor:
            return x * count

    class Optional(torch.nn.Module):
        def forward(
            self, x: torch.Tensor, mask: torch.Tensor | None = None, count: int = 2
        ) -> torch.Tensor:
            return x * count if mask is None else x * mask

    with pytest.raises(
        BackendError, match=r"argument 'count' is int: expected Tensor, List\[str\], or"
    ):
        make(NAME, scripted(Counted()))
    backend = make(NAME, scripted(Optional()))
    assert run(backend, torch.ones(1, 1))[0].item() == 2
    assert run(backend, [torch.ones(1, 1), torch.zeros(1, 1)])[0].item() == 0
    for left_out in ([torch.ones(1, 1), None], {"x": torch.ones(1, 1), "mask": None}):
        assert run(backend, left_out)[0].item() == 2
    for missing in ([None, torch.ones(1, 1)], {"x": None, "mask": torch.ones(1, 1)}):
        with pytest.raises(InvalidInput, match=r"input 0 \(x\)"):
            run(backend, missing)
    batch: list[Any] = [[torch.ones(1, 1)], [torch.ones(1, 1), torch.zeros(1, 1)]]
    assert [result.item() for result in run(backend, *batch)] == [2, 0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"precision": "int8"},
            "precision: int8 is for TensorRT: expected one of fp32, fp16, bf16",
        ),
        ({"precision::fp32": "conv1"}, "one precision for all layers"),
        ({"output_reorder": "0,2"}, "must hold each index once"),
    ],
)
def test_keys_that_do_not_fit(scripted: Any, make: Any, keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(NAME, scripted(Pair()), **keys)


def test_a_model_that_does_not_load_releases_its_process_wide_options(
    scripted: Any, make: Any, tmp_path: Path
) -> None:
    before = torch.backends.cudnn.enabled
    try:
        with pytest.raises(BackendError, match="does not exist"):
            make(NAME, tmp_path / "absent.pt", DISABLE_CUDNN=before)
        assert torch.backends.cudnn.enabled == before
        make(NAME, scripted(Pair()), DISABLE_CUDNN=not before)
        with pytest.raises(ConfigError, match="all models must agree"):
            make(NAME, scripted(Pair()), DISABLE_CUDNN=before)
        with pytest.raises(BackendError, match="does not exist"):
            make(NAME, tmp_path / "absent.pt", DISABLE_CUDNN=not before)
        with pytest.raises(ConfigError, match="all models must agree"):
            make(NAME, scripted(Pair()), DISABLE_CUDNN=before)
    finally:
        torch.backends.cudnn.enabled = before


def test_out_of_memory_says_how_much_is_free(scripted: Any, make: Any, run: Any) -> None:
    class Huge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(x.shape[0], 1 << 46)

    backend = make(NAME, scripted(Huge()))
    with pytest.raises(
        MemoryError,
        match=r"TorchScriptTensor: out of memory on cpu while running a batch: .* MiB of .* are "
        r"free; torch says: .*281474976710656",
    ):
        run(backend, torch.zeros(1, 1))
