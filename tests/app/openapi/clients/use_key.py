"""A client of a server that requires a key.

By its types the operations take an `AuthenticatedClient` only.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from penstock_client import AuthenticatedClient, Client
from penstock_client.api.digits import predict_digits
from penstock_client.models import PredictionDigits, Problem
from penstock_client.types import File


def predict(token: str) -> PredictionDigits | Problem | None:
    body = File(payload=BytesIO(Path(sys.argv[2]).read_bytes()))
    with AuthenticatedClient(base_url=sys.argv[1], token=token) as client:
        return predict_digits.sync(client=client, body=body)


answer = predict("k3y")
assert isinstance(answer, PredictionDigits) and answer.label == "three", answer
refused = predict("other")
assert isinstance(refused, Problem) and (refused.status, refused.code) == (401, "unauthorized"), (
    refused
)

with Client(base_url=sys.argv[1]) as without:
    body = File(payload=BytesIO(b""))
    # mypy --strict would report an ignore that is not needed
    refused = predict_digits.sync(client=without, body=body)  # type: ignore[arg-type]
assert isinstance(refused, Problem) and refused.status == 401, refused
