from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.backends.engines.sharing import shared


class Model:
    pass


def test_a_model_is_loaded_once_for_several_threads() -> None:
    loads: list[Model] = []
    asking = threading.Barrier(4)

    def load() -> Model:
        loads.append(Model())
        return loads[-1]

    def ask() -> Model:
        asking.wait(20)
        return shared("once", load)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(4) as pool:
        models = [future.result(20) for future in [pool.submit(ask) for _ in range(4)]]
    assert len(loads) == 1 and all(model is loads[0] for model in models)


def test_models_of_other_keys_load_meanwhile() -> None:
    def load() -> Model:
        assert shared("inner", Model) is not None  # while "outer" is being loaded
        return Model()

    assert shared("outer", load) is not shared("other", Model)


def test_a_model_is_freed_with_its_last_user() -> None:
    first = shared("gone", Model)
    assert shared("gone", Model) is first
    first.mark = True
    del first
    gc.collect()
    assert not hasattr(shared("gone", Model), "mark")


def test_a_load_that_fails_is_tried_again() -> None:
    def fail() -> Model:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        shared("again", fail)
    assert isinstance(shared("again", Model), Model)
