"""A folder with the artifacts of a shrunk model but no weights: all that a card needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.report.compensation import CompensationRecord
from optimum_ishrink.report.files import CONFIG_FILE, SCORES_FILE
from optimum_ishrink.report.measurement import Comparison, Failure, Measurement, Sample
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.plan import CalibrationRecord, Choice, Plan
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.run import Run
from optimum_ishrink.report.scores import write_scores
from tests.helpers.records import compare_speed, make_environment

LAYERS, DROPPED = 30, (13, 14, 17)
RETAINED = tuple(layer for layer in range(LAYERS) if layer not in DROPPED)
SETTING = "prompt 128, decode 32, batch 1"


def make_plan(**changes: Any) -> Plan:
    shape = {"num_hidden_layers": LAYERS, "num_key_value_heads": 3, "num_attention_heads": 9, "intermediate_size": 16}
    values: dict[str, Any] = {
        "model": "base",
        "revision": None,
        "model_type": "llama",
        "shape": shape,
        "new_shape": {**shape, "num_hidden_layers": len(RETAINED), "intermediate_size": 14},
        "layers": RETAINED,
        "units": {"intermediate_size": (tuple(range(14)),) * len(RETAINED)},
        "config_changes": {"num_hidden_layers": (LAYERS, len(RETAINED))},
        "num_parameters": 134_515_008,
        "new_num_parameters": 114_936_768,
        "choice": Choice("fisher", "block-influence", None, 0, CalibrationRecord(("self",), (None,), 64, 128, 64, 4)),
    }
    return Plan(**{**values, **changes})


def compare(metric: str, dataset: str, ratio: float, half: float, verdict: str, *, better: bool = True) -> Comparison:
    return Comparison(
        metric,
        dataset,
        32,
        ratio,
        ratio - half,
        ratio + half,
        ratio - 1,
        -half,
        half,
        better,
        None,
        None,
        None,
        verdict,
    )


def _speed(scale: float, versus: bool) -> tuple[Measurement, ...]:
    found = []
    for metric, value in (
        ("time_to_first_token_seconds", 0.139 / scale),
        ("prefill_tokens_per_second", 921.6 * scale),
        ("decode_tokens_per_second", 18.0 * scale),
    ):
        facts: dict[str, Any] = {
            "quartiles": [value * 0.95, value * 1.05],
            "samples": [value * 0.9, value, value * 1.1],
        }
        measurement = Measurement(metric, SETTING, value, None, 11, facts)
        ratio = 1 / scale if metric.endswith("_seconds") else scale
        found.append(measurement.with_versus_base(compare_speed(ratio)) if versus else measurement)
    return (*found, Measurement("kv_cache_bytes_per_token", "bfloat16 cache", 23040.0, None, 1))


def make_report(**changes: Any) -> Report:
    def quality(
        perplexity: float, quiz: float, norm: float, extra: tuple[Measurement, ...]
    ) -> tuple[Measurement, ...]:
        return (
            Measurement("perplexity", "Python_topics <b>&.txt", perplexity, 0.1234567890123, 32, {"length": 512}),
            *extra,
            Measurement("acc", "quiz", quiz, 1e-05, 200, {"num_fewshot": 0, "task_version": 1.0}),
            Measurement("acc_norm", "quiz", norm, 0.02, 200, {"num_fewshot": 0, "task_version": 1.0}),
        )

    divergence = (Measurement("kl_divergence", "Python_topics <b>&.txt", 0.5725576645318419, 0.0128, 32),)
    values: dict[str, Any] = {
        "base": ModelReport("org/base", 134_515_008, 269_030_016, quality(14.15, 0.42, 0.44, ()), _speed(1.0, False)),
        "shrunk": ModelReport(
            "small", 114_936_768, 229_873_536, quality(25.066703903971444, 0.41, 0.4, divergence), _speed(1.2, True)
        ),
        "environment": make_environment(),
        "comparisons": (
            compare("perplexity", "Python_topics <b>&.txt", 1.7715, 0.05, "worse", better=False),
            compare("acc", "quiz", 0.976, 0.06, "too few questions to tell"),
            compare("acc_norm", "quiz", 0.909, 0.08, "worse"),
        ),
        "samples": (
            Sample(
                "What is | a table?",
                "A **bold**\n\n| claim | <b>",
                "`x` <script>alert(1)</script>\n# no heading",
                {
                    "max_new_tokens": 32,
                    "do_sample": False,
                    "chat_template": True,
                },
            ),
            Sample("Say a long word.", "word " * 40, "w" * 300, {"max_new_tokens": 32}),
        ),
        "failures": (Failure("gsm8k", "its data set is not here; give a folder of it with --include-path"),),
        "origin": Origin(
            base_model="org/base",
            license="apache-2.0",
            languages=("en", "no"),
            command="ishrink shrink --model org/base --target params=-15% --output small --calibration " + "x" * 90,
        ),
        "compensation": CompensationRecord("none"),
    }
    return Report(**{**values, **changes})


def make_folder(folder: Path, report: Report | None = None, plan: Plan | None = None) -> Path:
    """Write what `build_card` reads.

    Args:
        folder: A new folder.
        report: The report; by default one with every part.
        plan: The plan; by default one that drops layers and neurons.
    """
    folder.mkdir()
    Run(plan or make_plan(), report or make_report()).write(folder)
    write_json(folder / CONFIG_FILE, {})
    generator = torch.Generator().manual_seed(0)
    scores = {
        "num_hidden_layers": torch.rand(LAYERS, generator=generator) + 0.01,
        "intermediate_size": torch.rand(LAYERS, 16, generator=generator),
    }
    write_scores(scores, folder / SCORES_FILE)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder
