"""The fixture that runs the real Triton."""

from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from .triton_server import TritonServer


def test_models_are_loaded_and_refused(triton: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "empty_chain").mkdir()
    (tmp_path / "empty_chain" / "config.pbtxt").write_text('platform: "ensemble"')
    with pytest.raises(InferenceServerException, match="ensemble scheduling must be set"):
        triton.add(tmp_path / "empty_chain")
