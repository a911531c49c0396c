"""TorchExportTensor: programs of torch.export and a package of AOTInductor, compared with the
modules that they were made of.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from penstock.backends.base import UNBOUNDED, Context
from penstock.backends.errors import BackendError, ConfigError, InvalidInput
from penstock.pipelines.pipeline import Pipeline

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from .modules import Pair, Pool

NAME = "TorchExportTensor"
Dim = torch.export.Dim


def close(result: Any, expected: Any) -> bool:
    return result.shape == expected.shape and bool(
        torch.allclose(result, expected.detach(), atol=1e-4, rtol=1e-4)
    )


def test_resnet_gives_what_eager_torch_gives(resnet: Any, exported: Any, images: Any) -> None:
    data = images(6)
    path = exported(resnet, torch.zeros(2, 3, 64, 64))

    async def ask() -> list[Any]:
        keys = {"backend": NAME, "model": str(path), "max": 4, "instance_num": 2}
        async with Pipeline.load({"resnet": keys}) as pipeline:
            return await pipeline([{"data": image[None]} for image in data])

    answers = asyncio.run(ask())
    assert close(
        torch.cat([answer["result"] for answer in answers]), resnet(torch.from_numpy(data))
    )


def test_inputs_in_order_and_by_name(exported: Any, make: Any, run: Any) -> None:
    pair = Pair()
    backend = make(NAME, exported(pair, torch.zeros(2, 3), torch.zeros(2, 2)), max=8)
    backend.warm_up()
    x, mask = torch.randn(1, 3), torch.randn(1, 2)
    for first, second in run(
        backend, [x, mask], {"mask": mask, "image": x}, {"a__1": mask, "a__0": x}
    ):
        assert close(first, pair.linear(x)) and close(second, mask + 1)


def test_inputs_of_any_structure(exported: Any, make: Any, run: Any) -> None:
    class Nested(torch.nn.Module):
        def forward(
            self, tensors: dict[str, torch.Tensor], pair: tuple[torch.Tensor, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            return {"difference": tensors["a"] - pair[0], "product": tensors["a"] * pair[1]}

    batch = Dim("batch")
    path = exported(
        Nested(),
        {"a": torch.ones(2, 2)},
        (torch.ones(2, 2), torch.ones(2, 2)),
        shapes=({"a": {0: batch}}, ({0: batch}, {0: batch})),
    )
    a, b, c = (torch.randn(1, 2) for _ in range(3))
    ((difference, product),) = run(make(NAME, path), {"tensors_a": a, "pair_0": b, "pair_1": c})
    assert close(difference, a - b) and close(product, a * c)


def test_dynamic_sizes(exported: Any, make: Any, run: Any, images: Any) -> None:
    shapes = ({0: Dim("n", max=6), 2: Dim("h", min=4, max=32), 3: Dim("w", min=4, max=32)},)
    backend = make(NAME, exported(Pool(), torch.zeros(2, 3, 8, 9), shapes=shapes))
    assert backend.max == 6
    backend.warm_up()  # runs nothing, because the sizes are not known
    for size in (4, 16):
        (result,) = run(backend, images(1, size))
        assert close(result, Pool()(torch.from_numpy(images(1, size))))
    with pytest.raises(
        InvalidInput,
        match=r"input 0 \(image\): expected float32 of shape Nx3x\(4..32\)x\(4..32\), found "
        r"float32 of shape 1x3x33x33",
    ):
        run(backend, images(1, 33))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4), np.float32), "expected float32 of shape Nx3, found float32 of shape 1x4"),
        (np.zeros((1, 3, 1), np.float32), "found float32 of shape 1x3x1"),
        (np.zeros((1, 3), np.int64), "found int64 of shape 1x3"),
    ],
)
def test_data_that_does_not_fit_names_input_expected_and_given(
    exported: Any, make: Any, run: Any, array: Any, message: str
) -> None:
    backend = make(NAME, exported(torch.nn.Linear(3, 2), torch.zeros(2, 3)))
    with pytest.raises(InvalidInput, match=r"TorchExportTensor: input 0 \(input\): .*" + message):
        run(backend, array)
    good, bad = run(backend, np.zeros((1, 3)), array)
    assert good.shape == (1, 2) and isinstance(bad, InvalidInput)


def test_dtypes_that_widen_are_converted(exported: Any, make: Any, run: Any) -> None:
    linear = torch.nn.Linear(3, 2)
    backend = make(NAME, exported(linear, torch.zeros(2, 3)))
    for dtype in (np.uint8, np.float16, np.float64, np.bool_):
        (result,) = run(backend, np.ones((1, 3), dtype))
        assert close(result, linear(torch.ones(1, 3)))


def test_a_fixed_batch_runs_padded(exported: Any, make: Any, run: Any) -> None:
    class Sign(torch.nn.Module):
        """Each row, and the number of rows in the batch that are not zero."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x.abs().sign().sum().expand(x.shape[0], 1)], 1)

    backend = make(NAME, exported(Sign(), torch.zeros(4, 1), fixed=True), max=32, batched=True)
    assert (backend.min, backend.max) == (4, 4)
    backend.warm_up()
    assert [
        result.tolist()
        for result in run(backend, *(torch.full((1, 1), value) for value in (1.0, 2.0, 3.0)))
    ] == [
        [[1, 3]],
        [[2, 3]],
        [[3, 3]],
    ]
    assert run(backend, torch.ones(4, 1), request_size=4)[0].tolist() == [[1, 4]] * 4
    assert run(backend, torch.ones(1, 1))[0].tolist() == [[1, 1]]


def test_batches_below_the_smallest_are_padded(exported: Any, make: Any, run: Any) -> None:
    path = exported(Pool(), torch.zeros(6, 3, 2, 2), shapes=({0: Dim("n", min=4, max=8)},))
    backend = make(NAME, path)
    assert (backend.min, backend.max) == (4, 8)
    assert run(backend, torch.ones(1, 3, 2, 2))[0].tolist() == [[1, 1, 1]]


def test_the_default_bounds_of_torch_export_are_ignored(exported: Any, make: Any, run: Any) -> None:
    """torch.export looks only at batches of 2 and more, and says nothing of 1."""
    backend = make(NAME, exported(Pool(), torch.zeros(2, 3, 2, 2), shapes=({0: Dim.DYNAMIC},)))
    assert (backend.min, backend.max) == (1, UNBOUNDED)
    assert run(backend, torch.ones(1, 3, 2, 2))[0].tolist() == [[1, 1, 1]]


def test_warm_up_takes_shapes_from_the_program(
    exported: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = make(NAME, exported(Pool(), torch.zeros(2, 3, 4, 4)), max=5, mean="1")
    engine = backend.children[0]
    ran = []
    model = engine.model

    def recorded(*inputs: torch.Tensor) -> Any:
        ran.append([tuple(tensor.shape) for tensor in inputs])
        return model(*inputs)

    monkeypatch.setattr(engine, "model", recorded)
    backend.warm_up()
    assert ran == [[(size, 3, 4, 4)] for size in (5, 4, 2, 1)]


def test_mean_and_std(exported: Any, make: Any, run: Any) -> None:
    data = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4), np.uint8)
    backend = make(NAME, exported(Pool(), torch.zeros(2, 3, 4, 4)), mean="1,2,3", std="2,4,8")
    expected = Pool()(
        (torch.from_numpy(data) - torch.tensor([1.0, 2, 3]).view(3, 1, 1))
        / torch.tensor([2.0, 4, 8]).view(3, 1, 1)
    )
    assert close(run(backend, data)[0], expected)


def test_instances_share_a_program_unless_sharing_is_off(exported: Any, make: Any) -> None:
    path = exported(torch.nn.Linear(3, 2), torch.zeros(2, 3))

    def weight(**keys: Any) -> int:
        module = make(NAME, path, **keys).children[0].model._function
        return int(module.get_parameter("weight").data_ptr())

    assert weight() == weight() != weight(ENABLE_WEIGHT_SHARING=False)


# files


def test_files_that_can_not_be_read(exported: Any, make: Any, tmp_path: Path) -> None:
    path = exported(torch.nn.Linear(3, 2), torch.zeros(2, 3))
    whole = path.read_bytes()
    for keep in (
        0,
        100,
        len(whole) // 2,
        *range(len(whole) * 9 // 10, len(whole), 97),
        len(whole) - 23,
        len(whole) - 1,
    ):
        path.write_bytes(whole[:keep])
        with pytest.raises(
            BackendError,
            match=rf"node 'node': TorchExportTensor: the model {path} can't be read.* it is "
            r"truncated or",
        ):
            make(NAME, path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt2")
    with pytest.raises(
        BackendError, match="is TorchScript or a state_dict: expected an exported program"
    ):
        make(NAME, tmp_path / "weights.pt2")
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("readme", "no program")
    with pytest.raises(BackendError, match=r"other\.pt2 can't be loaded: \w+"):
        make(NAME, tmp_path / "other.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(BackendError, match=r"folder\.pt2 is a directory"):
        make(NAME, tmp_path / "folder.pt2")
    with pytest.raises(BackendError, match=r"absent\.pt2 does not exist"):
        make(NAME, tmp_path / "absent.pt2")


def test_programs_that_can_not_be_batched(exported: Any, make: Any) -> None:
    with pytest.raises(
        BackendError,
        match=r"its inputs differ in their first dimension \(image 1, mask 2\): expected the batch",
    ):
        make(NAME, exported(Pair(), torch.zeros(1, 3), torch.zeros(2, 2), fixed=True))

    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
            return x * factor

    with pytest.raises(
        BackendError, match="input 'factor': expected a tensor with a batch dimension"
    ):
        make(NAME, exported(Scaled(), torch.zeros(2, 3), torch.ones(()), fixed=True))


def test_a_program_keeps_the_precision_of_its_export(exported: Any, make: Any) -> None:
    with pytest.raises(ConfigError, match="has the precision that it was exported with"):
        make(NAME, exported(torch.nn.Linear(3, 2), torch.zeros(2, 3)), precision="fp16")


# AOTInductor


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile a package for this machine's CPU, with its C++ compiler."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("AOTInductor compiles with g++ or clang++")
    torch.manual_seed(0)
    pair = Pair().eval()
    batch = Dim("batch", max=16)
    program = torch.export.export(
        pair, (torch.zeros(2, 3), torch.zeros(2, 2)), dynamic_shapes=({0: batch}, {0: batch})
    )
    folder = tmp_path_factory.mktemp("package")
    path = folder / "pair.pt2"
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # torch packs all files that lie in the model's folder of its cache, also those that another
        # process compiles there at the moment: half a library ends the process that loads it.
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))
        warnings.simplefilter("ignore")  # torch's compiler calls deprecated functions of torch
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return pair, path


def test_a_package_that_does_not_say_why_it_refuses_one_row_gets_two(
    package: Any, make: Any, run: Any
) -> None:
    """torch 2.11 only prints the reason, on a GPU."""
    pair, path = package
    backend = make(NAME, path, max=4, batched=True)
    engine = backend.children[0]
    compiled = engine.model

    def silent(*inputs: Any) -> Any:
        if len(inputs[0]) < 2:
            raise RuntimeError("run_func_( ...) API call failed at model_container_runner.cpp")
        return compiled(*inputs)

    engine.model = silent
    x, y = torch.randn(1, 3), torch.randn(1, 2)
    (answer,) = run(backend, [x, y])
    expected = pair(x, y)
    for one, other in zip(answer, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_package_gives_what_eager_torch_gives(package: Any, make: Any, run: Any) -> None:
    pair, path = package
    backend = make(NAME, path, max="8x3,8x2")
    backend.warm_up()
    items = [(torch.randn(1, 3), torch.randn(1, 2)) for _ in range(5)]
    for count in (5, 1):  # the package itself does not run batches of one: they are padded
        for (x, mask), (first, second) in zip(items, run(backend, *items[:count]), strict=False):
            assert close(first, pair.linear(x)) and close(second, mask + 1)
    for data, message in (
        (
            [torch.zeros(1, 4), torch.zeros(1, 2)],
            r"input_handles\[0\]: unmatched dim value at 1, expected: 3, but got: 4",
        ),
        ([torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 2)], "unmatched dtype"),
        ([torch.zeros(1, 3)], "the model has 2 inputs, but data holds 1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            run(backend, data)


def test_a_package_with_several_instances(package: Any) -> None:
    pair, path = package
    items = [[torch.randn(1, 3), torch.randn(1, 2)] for _ in range(32)]

    async def ask() -> list[Any]:
        async with Pipeline.load(
            {"pair": {"backend": NAME, "model": str(path), "max": 4, "instance_num": 3}}
        ) as pipeline:
            return await pipeline([{"data": inputs} for inputs in items])

    for (x, mask), answer in zip(items, asyncio.run(ask()), strict=True):
        assert close(answer["result"][0], pair.linear(x)) and close(answer["result"][1], mask + 1)


def test_a_package_for_another_device(package: Any, make: Any, tmp_path: Path) -> None:
    """Change the device that the package's metadata names to a GPU."""
    _, path = package
    other = tmp_path / "cuda.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(
                name,
                content.replace(b'"AOTI_DEVICE_KEY": "cpu"', b'"AOTI_DEVICE_KEY": "cuda"')
                if name.endswith("metadata.json")
                else content,
            )
    with pytest.raises(
        BackendError,
        match=r"cuda\.pt2 was compiled for cuda, but the node runs on cpu: set device = 'cuda'",
    ):
        make(NAME, other, Context(node="node", device="cpu"))


def test_a_package_without_its_metadata(package: Any, make: Any, tmp_path: Path) -> None:
    _, path = package
    damaged = tmp_path / "damaged.pt2"
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(damaged, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in source.namelist():
            if not name.endswith((".so", "metadata.json")):
                target.writestr(name, source.read(name))
    with pytest.raises(BackendError, match=r"damaged\.pt2 can't be loaded"):
        make(NAME, damaged)


def test_packages_are_loaded_and_freed_one_at_a_time(
    package: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.package import package as module

    load_package, meeting = module.load_package, threading.Barrier(2, timeout=0.3)
    together: list[bool] = []

    def load(*arguments: Any, **keys: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            meeting.wait()
            together.append(True)
        return load_package(*arguments, **keys)

    monkeypatch.setattr(module, "load_package", load)
    _, path = package
    keys = {"max": "8x3,8x2", "ENABLE_WEIGHT_SHARING": False}
    threads = [threading.Thread(target=make, args=(NAME, path), kwargs=keys) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together
