"""A client of an older document: type-checked and run like use_python.py."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from penstock_client import Client
from penstock_client.api.digits import batch_digits, predict_digits
from penstock_client.api.pipelines import list_pipelines
from penstock_client.models import BatchDigits, ImagesForm, PredictionDigits, Problem
from penstock_client.types import File

THREE = Path(sys.argv[2]).read_bytes()


def file() -> File:
    return File(payload=BytesIO(THREE))


with Client(base_url=sys.argv[1], raise_on_unexpected_status=True) as client:
    answer = predict_digits.sync(client=client, body=file())
    assert isinstance(answer, PredictionDigits), answer
    assert (answer.label, answer.class_) == ("three", 3)
    print("more:", *answer.additional_properties)
    several = batch_digits.sync(
        client=client, body=ImagesForm(images=[file(), File(payload=BytesIO(b"no image"))])
    )
    assert isinstance(several, BatchDigits), several
    first, second = several.results
    assert isinstance(first, PredictionDigits) and first.label == "three"
    assert isinstance(second, Problem) and second.code == "invalid_input"
    listed = list_pipelines.sync(client=client)
    assert listed is not None
    print("pipelines:", *(pipeline.name for pipeline in listed.pipelines))
