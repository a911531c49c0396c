"""SaveTensor and LoadTensor."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from penstock.backends.base import Context
from penstock.backends.errors import BackendError, InvalidInput
from penstock.backends.image.tensor.files import LoadTensor, SaveTensor
from penstock.backends.item import Item

torch = pytest.importorskip("torch")


def save(make: Any, directory: Any, *values: Any) -> None:
    backend = make(SaveTensor, Context(node="look", directory=directory), save_dir="seen")
    for value in values:
        item = {"data": value}
        backend.forward([item])
        assert item["result"] is value


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    (tmp_path / "seen").mkdir()
    return tmp_path / "seen"


def test_there_and_back(make: Any, run_tensor: Any, seen: Path, tmp_path: Path) -> None:
    values = [
        torch.rand(1, 3, 4, 5),
        np.arange(3),
        [torch.ones(2), torch.zeros(1, dtype=torch.bfloat16)],
    ]
    save(make, tmp_path, *values)
    assert sorted(path.name for path in seen.iterdir()) == [
        f"look_0_{number:06}.pt" for number in range(3)
    ]
    for number, value in enumerate(values):
        loaded = run_tensor(
            LoadTensor, torch.zeros(1), tensor_name=str(seen / f"look_0_{number:06}.pt")
        )["result"]
        if isinstance(value, list):
            assert all(torch.equal(*pair) for pair in zip(loaded, value, strict=True))
        else:
            assert torch.equal(loaded, torch.as_tensor(value))


def test_nothing_is_overwritten(make: Any, seen: Path, tmp_path: Path) -> None:
    save(make, tmp_path, torch.ones(1))
    save(make, tmp_path, torch.ones(2))
    assert [len(torch.load(path)) for path in sorted(seen.iterdir())] == [1, 2]


def test_a_part_is_saved_without_the_whole(make: Any, seen: Path, tmp_path: Path) -> None:
    save(make, tmp_path, torch.zeros(1000, 1000)[:1])
    assert next(seen.iterdir()).stat().st_size < 10_000


def test_a_missing_directory(make: Any, seen: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"SaveTensor: save_dir .* is not an existing directory: create it first"
    ):
        make(SaveTensor, Context(directory=tmp_path), save_dir="nothing")
    backend = make(SaveTensor, save_dir=str(seen))
    seen.rmdir()
    with pytest.raises(BackendError, match="SaveTensor: can't write to"):
        backend.forward([{"data": torch.ones(1)}])


def test_other_data_is_refused(make: Any, seen: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="SaveTensor: expected a tensor or an array of numbers"):
        save(make, tmp_path, "text")
    assert not list(seen.iterdir())


def test_each_item_has_a_copy(make: Any, tmp_path: Path) -> None:
    torch.save(torch.ones(6)[::2].requires_grad_(), tmp_path / "three.pt")
    backend = make(LoadTensor, Context(directory=tmp_path), tensor_name="three.pt")
    batch: list[Item] = [{"data": None}, {"data": None}]
    backend.forward(batch)
    batch[0]["result"].zero_()
    assert batch[1]["result"].tolist() == [1, 1, 1] and batch[1]["result"].is_contiguous()


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code that ran",)


def test_files_without_a_tensor(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "dict.pt")
    torch.save([], tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    for name, message in (
        ("dict.pt", "holds a dict: expected a tensor or a list of them"),
        ("empty.pt", "holds a list: expected"),
        ("text.pt", "can't be read: "),
        ("evil.pt", "can't be read: "),
        ("nothing.pt", "can't be read: FileNotFoundError"),
    ):
        with pytest.raises(BackendError, match=f"LoadTensor: .*{name} {message}"):
            make(LoadTensor, Context(directory=tmp_path), tensor_name=name)
    assert "code that ran" not in capsys.readouterr().out


@pytest.mark.parametrize("cls", [SaveTensor, LoadTensor])
def test_wrong_parameters_are_a_load_error(cls: Any) -> None:
    with pytest.raises(ValidationError):
        cls.parameters()
