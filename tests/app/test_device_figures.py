from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from optimum_ishrink.app.device_figures import device_environment, device_evidence, device_measurements
from optimum_ishrink.app.device_report import DeviceReport, read_device_report
from optimum_ishrink.report.measurement import Measurement
from tests.helpers.card_folder import make_report
from tests.helpers.device_reports import device_report, save_report

WHERE = "browser on Pixel 9: q4_0"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def reading(**changes: Any) -> DeviceReport:
        return read_device_report(save_report(tmp_path / "a.json", **changes))

    return reading


def named(found: tuple[Measurement, ...]) -> dict[str, Measurement]:
    return {each.metric: each for each in found}


def test_figures_and_verdicts_are_computed_here(read: Any) -> None:
    found = device_measurements(read())
    assert list(found) == ["base", "shrunk"]
    base, shrunk = named(found["base"]), named(found["shrunk"])
    assert base["file_bytes"].dataset == WHERE and base["file_bytes"].value == 9e7
    decode = shrunk["decode_tokens_per_second"]
    values = next(
        each["values"]
        for each in device_report()["samples"]
        if (each["role"], each["metric"]) == ("shrunk", "decode_tokens_per_second")
    )
    assert decode.value == median(value for turns in values for value in turns)
    assert (decode.dataset, decode.n, decode.runtime) == (f"{WHERE}, prompt 64", 12, "llama.cpp")
    assert decode.samples == tuple(value for turns in values for value in turns)
    for metric, ratio in (("decode_tokens_per_second", 1.5), ("response_seconds", 1 / 1.5)):
        compared = shrunk[metric].versus_base
        assert compared is not None
        assert compared.verdict == "faster"
        assert compared.ratio == pytest.approx(ratio, rel=0.01)
        assert len(compared.round_ratios) == 12
    loads = [each for each in found["shrunk"] if each.metric == "model_load_seconds"]
    assert [(each.n, each.versus_base and each.versus_base.verdict) for each in loads] == [
        (12, "faster"),
        (3, "too few rounds to tell"),
    ]
    assert shrunk["peak_memory_bytes"].versus_base is None
    assert base["decode_tokens_per_second"].versus_base is None


def test_a_model_beside_itself(read: Any) -> None:
    found = named(device_measurements(read(faster=1.0))["shrunk"])
    assert found["decode_tokens_per_second"].versus_base is not None
    assert found["decode_tokens_per_second"].versus_base.verdict == "no difference"


def test_a_model_alone(read: Any) -> None:
    report = device_report()
    shrunk = [each for each in report["samples"] if each["role"] == "shrunk"]
    alone = read(models=report["models"][1:], samples=shrunk)
    found = device_measurements(alone)
    assert list(found) == ["shrunk"]
    assert all(each.versus_base is None for each in found["shrunk"])
    assert device_evidence(alone, make_report(), 9).base is None


def test_what_only_one_model_has_is_not_compared(read: Any) -> None:
    samples = device_report()["samples"]
    base = [each for each in samples if each["role"] == "base" and each["metric"] != "response_seconds"]
    base[1]["values"] = base[1]["values"][:2]  # fewer rounds than the other's
    measured = device_measurements(read(samples=[*base, *samples[6:]]))["shrunk"]
    found = named(measured)
    assert [each.versus_base is None for each in measured if each.metric == "model_load_seconds"] == [False, True]
    assert found["response_seconds"].versus_base is None
    assert found["time_to_first_token_seconds"].versus_base is not None


def test_what_tells_figures_apart(read: Any) -> None:
    """Other quantisations and backends, and other devices, have figures of their own."""
    places = [
        read(),
        read(models__0__quantization="q8_0"),
        read(runtime__backend="webgpu"),
        read(device__name="Pixel 10"),
    ]
    found = [device_measurements(each)["shrunk"][0].dataset for each in places]
    assert found == [
        WHERE,
        "browser on Pixel 9: q4_0 beside q8_0",
        f"{WHERE} on webgpu",
        "browser on Pixel 10: q4_0",
    ]


def test_the_device_is_an_environment(read: Any) -> None:
    found = device_environment(read())
    assert (found.cpu, found.device, found.threads, found.logical_cores) == ("Pixel 9", "cpu", 2, 8)
    assert (found.browser, found.python, found.dtype) == ("Chromium 150", None, "q4_0")
    assert found.memory_bytes == 8 * 2**30
    assert found.runtime == "llama.cpp b12211-7d7f028"
    assert found.versions == {"@wllama/wllama": "3.13.0", "optimum-ishrink": "0.1.0"}
    other = device_environment(read(device__memory_gb=None, runtime__package="own"))
    assert other.memory_bytes is None and other.versions["own"] == ""


def test_the_evidence_has_the_sizes_of_the_checkpoints(read: Any) -> None:
    known = make_report()
    found = device_evidence(read(), known, 9)
    assert found.base is not None and known.base is not None
    assert (found.base.name, found.base.params) == (known.base.name, known.base.params)
    assert (found.shrunk.bytes, found.shrunk.quality) == (known.shrunk.bytes, ())
    without = device_evidence(read(), make_report(base=None), 9)
    assert without.base is not None and (without.base.name, without.base.params) == ("large", 9)


def test_when_and_of_which_file_is_no_condition(read: Any) -> None:
    found = device_measurements(read())["shrunk"][0]
    assert {"created", "file", "sha256", "user_agent"} <= set(found.settings)
    assert not {"created", "file", "sha256", "user_agent"} & set(found.conditions)
