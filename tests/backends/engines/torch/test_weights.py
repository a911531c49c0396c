"""Weights that the child processes of a node map."""

from __future__ import annotations

import gc
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from penstock.backends.base import Context
from penstock.backends.shared_files import SharedFiles

from .test_python import NAME, NET

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process executors need Linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def weights(dtype: Any = None) -> dict[str, Any]:
    torch.manual_seed(0)
    state = torch.nn.Linear(3, 4).state_dict()
    return {f"linear.{name}": value.to(dtype or torch.float32) for name, value in state.items()}


def children(folder: Path, make: Any, **params: Any) -> Any:
    """Open instances as two child processes do, each with what the server sent."""
    server = SharedFiles()
    for number in range(2):
        files = pickle.loads(pickle.dumps(server))
        context = Context(
            node="node",
            directory=folder,
            instance=number,
            instances=2,
            alone=True,
            shared_files=files,
            device="cpu",
        )
        yield make(NAME, "net.py:Net", context, state_dict="net.pth", **params)
        server.keep()
        gc.collect()


def parameters(backend: Any) -> Any:
    return dict(backend.children[0].model.named_parameters())


def mapped(tensor: Any) -> bool:
    """Return whether a tensor's memory is that of a file in memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(place, 16) for place in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return "memfd:penstock weights" in line
    return False


def test_children_map_the_weights(folder: Path, make: Any, run: Any) -> None:
    torch.save(weights(), folder / "net.pth")
    x = torch.randn(1, 3)
    expected = torch.nn.functional.linear(x, *weights().values())
    for backend in children(folder, make, enable_weight_sharing=False):
        assert all(map(mapped, parameters(backend).values()))
        assert not any(value.requires_grad for value in parameters(backend).values())
        assert torch.equal(run(backend, x)[0], expected)


def test_a_file_that_is_overwritten_does_not_change_them(folder: Path, make: Any, run: Any) -> None:
    path = folder / "net.pth"
    torch.save(weights(), path)
    x = torch.randn(1, 3)
    backend = next(children(folder, make))
    before = run(backend, x)[0]
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
        file.truncate(1)
    assert torch.equal(run(backend, x)[0], before)


@pytest.mark.parametrize("kind", ["float64", "old"])
def test_weights_that_do_not_fit_as_they_are_are_copied(
    kind: str, folder: Path, make: Any, run: Any
) -> None:
    old = kind == "old"
    values = weights(None if old else torch.float64)
    torch.save(values, folder / "net.pth", _use_new_zipfile_serialization=not old)
    x = torch.randn(1, 3)
    backend = next(children(folder, make))
    assert not any(map(mapped, parameters(backend).values()))
    assert torch.equal(run(backend, x)[0], torch.nn.functional.linear(x, *weights().values()))


def test_one_instance_reads_the_file(folder: Path, make: Any) -> None:
    torch.save(weights(), folder / "net.pth")
    context = Context(node="node", directory=folder, device="cpu")
    backend = make(NAME, "net.py:Net", context, state_dict="net.pth")
    assert not any(map(mapped, parameters(backend).values()))
