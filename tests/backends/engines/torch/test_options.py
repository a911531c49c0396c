from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from penstock.backends.errors import ConfigError

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from penstock.backends.engines.torch import options
from penstock.backends.engines.torch.options import release, set_process_wide


def test_the_first_to_ask_sets_an_option_and_others_must_agree() -> None:
    before = torch.backends.cudnn.enabled
    try:
        set_process_wide("DISABLE_CUDNN", True, "node 'a' of pipeline 'p'", "a")
        assert not torch.backends.cudnn.enabled
        set_process_wide("DISABLE_CUDNN", True, "node 'b' of pipeline 'p'", "b")
        with pytest.raises(
            ConfigError,
            match=r"\[b\] DISABLE_CUDNN: False wanted, but node 'a' of pipeline 'p' has set it to "
            r"True: .* whole process",
        ):
            set_process_wide("DISABLE_CUDNN", False, "node 'b' of pipeline 'p'", "b")
        assert not torch.backends.cudnn.enabled
    finally:
        torch.backends.cudnn.enabled = before


@pytest.mark.parametrize(
    "option",
    ["DISABLE_CUDNN", "ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING", "ENABLE_TENSOR_FUSER"],
)
def test_an_option_is_restored_when_the_last_model_releases_it(option: str) -> None:
    def now() -> bool:
        set_process_wide(option, True, "asks", "asks")
        before: bool = options._set[option].before
        release(option, "asks")
        return before

    before = now()
    set_process_wide(option, not before, "a", "a")
    set_process_wide(option, not before, "b", "b")
    release(option, "a")
    with pytest.raises(ConfigError, match="b has set it to"):
        set_process_wide(option, before, "c", "c")
    release(option, "b")
    assert now() == before


def test_an_option_that_torch_no_longer_changes_is_an_error_each_time() -> None:
    """Run in a process of its own, because torch lets this number be set only once."""
    code = """
import torch
from penstock.backends.engines.torch.options import set_process_wide
from penstock.backends.errors import ConfigError
set_process_wide("INTER_OP_THREAD_COUNT", 3, "a", "a")
assert torch.get_num_interop_threads() == 3
from penstock.backends.engines.torch import options
options._set.clear()
for _ in range(2):
    try:
        set_process_wide("INTER_OP_THREAD_COUNT", 5, "b", "b")
    except ConfigError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.count("[b] INTER_OP_THREAD_COUNT: torch does not take 5 any more: ") == 2
