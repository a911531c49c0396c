"""Scrapes, as Prometheus's own parsers read them. For the numbers see test_health.py and
v2/models/test_statistics.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr

from penstock import create_app
from penstock.app.settings import Settings
from penstock.app.v2.models.metrics import COUNTERS, PENDING_GAUGE
from penstock.backends.errors import MemoryFull
from penstock.backends.memory import LEAST_BYTES, budget

FAILURE = "nv_inference_request_failure"


@pytest.fixture
def served(running: Any, digits: Path) -> Any:
    with running(create_app(digits)) as client:
        yield client


def scrape(served: Any, form: Any) -> Any:
    """Return the value of every sample by its name and labels in their order, and the families."""
    if form == "text":
        families = list(parse_text(served.get("/metrics").text))
    else:
        answer = served.get(
            "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )
        assert answer.headers["content-type"].startswith(
            "application/openmetrics-text; version=1.0.0"
        )
        parse: Callable[[str], Iterable[Metric]] = parse_openmetrics  # it has no annotations
        families = list(parse(answer.text))
    samples = {
        (sample.name, *sample.labels.items()): sample.value
        for family in families
        for sample in family.samples
    }
    return samples, {family.name: family for family in families}


def test_a_slash_at_the_end_of_a_path_changes_nothing(running: Any, digits: Path) -> None:
    """No redirect: not every scraper follows one."""
    settings = Settings(api_key=SecretStr("key"))
    with running(create_app(digits, settings=settings)) as client:
        for path in ("/metrics", "/pipelines"):
            assert client.get(path + "/").status_code == 401
            answers = [
                client.get(path + end, headers={"Authorization": "Bearer key"}) for end in ("", "/")
            ]
            assert [answer.status_code for answer in answers] == [200, 200]
            types = [answer.headers["content-type"] for answer in answers]
            assert types[0] == types[1]


@pytest.mark.parametrize("form", ["text", "openmetrics"])
def test_triton_names_are_spelled_as_triton_does(served: Any, digit: bytes, form: Any) -> None:
    """In both formats: no `_total` at the end, labels in alphabetical order, microseconds."""
    served.post("/predict/digits", content=digit).raise_for_status()
    assert served.post("/predict/digits", content=b"no image").status_code == 422
    samples, families = scrape(served, form)
    shown = {name: labels for name, *labels in samples if name.startswith("nv_")}
    cached = {name for name in COUNTERS if name.startswith("nv_cache_")}  # it has no cache
    assert set(shown) == {*COUNTERS, PENDING_GAUGE} - cached
    for name, labels in shown.items():
        assert families[name].documentation and families[name].type == (
            "gauge" if name == PENDING_GAUGE else "unknown"
        )
        assert [key for key, _ in labels] == (
            ["model", "reason", "version"] if name == FAILURE else ["model", "version"]
        )
    model = (("model", "digits"), ("version", "1"))
    assert samples["nv_inference_request_success", *model] == 1
    assert samples[FAILURE, model[0], ("reason", "OTHER"), model[1]] == 1
    # Dashboards divide these. Each is rounded to a microsecond, so the sum may be one too large.
    queue, run, whole = (
        samples[f"nv_inference_{part}_duration_us", *model]
        for part in ("queue", "compute_infer", "request")
    )
    assert run > 0 and queue + run <= whole + 1 and whole < 60e6


@pytest.mark.parametrize("form", ["text", "openmetrics"])
def test_counters_only_grow_until_a_load(
    running: Any, digits: Path, digit: bytes, form: Any
) -> None:
    """All counters of a pipeline loaded again begin at 0, which Prometheus takes for a restart."""

    def counters(served: Any) -> Any:
        samples, families = scrape(served, form)
        counted = COUNTERS.keys() | {
            f"{name.removesuffix('_total')}_total"
            for name in families
            if families[name].type == "counter"
        }
        return {
            sample: value
            for sample, value in samples.items()
            if sample[0] in counted
            # These are of the process, as are those of other tests that ran in it.
            and not sample[0].startswith(("process_", "penstock_memory_"))
        }

    settings = Settings(admin_token=SecretStr("token"), allow_model_control=True)
    with running(create_app(digits, settings=settings)) as served:
        before = counters(served)
        assert not any(before.values())
        for content in (digit, b"no image", digit):
            served.post("/predict/digits", content=content)
            after = counters(served)
            assert before.keys() == after.keys() and all(
                after[sample] >= value for sample, value in before.items()
            )
            assert after != before
            before = after
        served.post(
            "/v2/repository/models/digits/load", headers={"authorization": "Bearer token"}
        ).raise_for_status()
        assert counters(served).keys() == before.keys() and not any(counters(served).values())


def test_a_scrape_grows_with_pipelines_and_not_with_requests(served: Any, digit: bytes) -> None:
    served.post("/predict/digits", content=digit).raise_for_status()
    first, _ = scrape(served, "text")
    for _ in range(50):
        served.post("/predict/digits", content=digit).raise_for_status()
    assert scrape(served, "text")[0].keys() == first.keys()


def test_the_memory_of_requests(running: Any, digits: Path) -> None:
    with running(create_app(digits, settings=Settings(max_memory=1000))) as client:
        budget.reserve(600, "a test")
        with pytest.raises(MemoryFull):
            budget.reserve(401, "an odd test")
        samples, _ = scrape(client, "text")
        budget.release(600)
        assert samples["penstock_memory_bytes",] == 600
        assert samples["penstock_memory_limit_bytes",] == 1000
        assert samples["penstock_memory_refused_total", ("reason", "odd test")] == 1
        samples, _ = scrape(client, "openmetrics")
        assert samples["penstock_memory_bytes",] == 0


def test_without_a_setting_the_limit_is_a_part_of_what_is_free(running: Any, digits: Path) -> None:
    with running(create_app(digits)) as client:
        limit = scrape(client, "text")[0]["penstock_memory_limit_bytes",]
        assert LEAST_BYTES <= limit < 1 << 50
