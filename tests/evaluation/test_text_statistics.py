from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.core import micro_batch
from optimum_ishrink.core.json_codec import to_plain
from optimum_ishrink.errors import DataError, NotFiniteError
from optimum_ishrink.evaluation.environment import environment
from optimum_ishrink.evaluation.harness import evaluate_tasks, harness_measurements, open_tasks
from optimum_ishrink.evaluation.text_quality import text_measurements
from optimum_ishrink.evaluation.text_statistics import (
    LARGEST_LOSS,
    kl_divergence,
    mean_over_windows,
    perplexity,
    perplexity_estimate,
    token_statistics,
)
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model, tiny_tokenizer

WINDOWS = torch.randint(3, VOCAB, (5, 12), generator=torch.Generator().manual_seed(0))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 30))
def test_kl_of_a_distribution_with_itself_is_zero_and_no_other_is_negative(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(3, 17, generator=generator) * scale for _ in range(2))
    assert torch.equal(kl_divergence(p, p), torch.zeros(3))
    assert (kl_divergence(p, q) > -1e-6).all()  # where both are certain of one token, rounding is all that is left
    reference = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(kl_divergence(p, q), reference.sum(-1), rtol=1e-4, atol=1e-5)


def test_a_model_against_itself() -> None:
    model = tiny_model(tiny_config("llama"))
    found = token_statistics(model, model, WINDOWS)
    assert not found["kl"].any()
    assert found["agree"].all()
    assert torch.equal(found["nll"], found["base_nll"])
    assert found["nll"].shape == (5, 11)


def test_more_windows_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, base = tiny_model(tiny_config("llama"), seed=1), tiny_model(tiny_config("llama"), seed=2)
    plain = token_statistics(model, base, WINDOWS)
    monkeypatch.setattr(micro_batch, "is_measured", lambda device: True)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 4000)
    monkeypatch.setattr(micro_batch, "_start_measuring", lambda device: 0)
    monkeypatch.setattr(micro_batch, "_most_taken", lambda device: 1000)
    ran: list[int] = []
    model.register_forward_pre_hook(lambda _, __, named: ran.append(len(named["input_ids"])), with_kwargs=True)
    shown: list[int] = []
    grown = token_statistics(model, base, WINDOWS, advance=shown.append)
    assert ran == [1, 3, 1]
    assert sum(shown) == 5
    for name, values in plain.items():
        torch.testing.assert_close(grown[name], values, atol=1e-5, rtol=1e-5)


def test_perplexity_and_divergence_agree_with_a_direct_computation() -> None:
    model, base = tiny_model(tiny_config("llama"), seed=1), tiny_model(tiny_config("llama"), seed=2)
    old, new = text_measurements(model, base, WINDOWS, "words", {"seed": 0})
    values = {m.metric: m for m in new}
    with torch.no_grad():
        loss = torch.stack([model(w[None], labels=w[None]).loss for w in WINDOWS])
        log_q, log_p = (each(WINDOWS).logits[:, :-1].log_softmax(-1) for each in (model, base))
    assert values["perplexity"].value == pytest.approx(loss.mean().exp().item(), rel=1e-5)
    assert values["kl_divergence"].value == pytest.approx(
        (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4
    )
    assert values["top1_agreement"].value == pytest.approx(
        (log_p.argmax(-1) == log_q.argmax(-1)).float().mean().item()
    )
    assert [m.metric for m in old] == ["perplexity"]
    assert values["perplexity"].n == 5
    assert values["perplexity"].settings == {"seed": 0, "tokens": 55}
    alone = text_measurements(model, None, WINDOWS, "words", {})
    assert alone[0] == ()
    assert [m.metric for m in alone[1]] == ["perplexity"]


def test_standard_errors_are_over_windows() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, 4.0], [5.0, 9.0]], dtype=torch.float64)
    estimate = mean_over_windows(values)
    assert estimate.value == 4
    assert estimate.stderr == pytest.approx(torch.tensor([2.0, 3.0, 7.0]).std().item() / math.sqrt(3))
    assert mean_over_windows(values[:1]).stderr is None
    assert perplexity(values).stderr == pytest.approx(math.exp(4) * estimate.stderr)


def test_the_environment_is_complete() -> None:
    found = environment(torch.device("cpu"), torch.bfloat16)
    assert found.dtype == "bfloat16"
    assert found.threads == torch.get_num_threads()
    assert (found.logical_cores or 0) >= 1
    assert found.versions["torch"] == torch.__version__
    assert json.dumps(to_plain(found))


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    rows = [{"question": f"{i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "parity.yaml").write_text(
        f"task: parity\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return tmp_path


def test_local_tasks(task_folder: Path) -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    manager = open_tasks(["parity"], str(task_folder))
    found = {m.metric: m for m in evaluate_tasks(model, tokenizer, ["parity"], manager, num_fewshot=0)}
    assert set(found) == {"acc", "acc_norm"}
    assert 0 <= found["acc"].value <= 1
    assert found["acc"].n == 8
    assert found["acc"].settings["num_fewshot"] == 0
    assert found["acc"].stderr is not None


def test_tasks_that_do_not_exist(task_folder: Path) -> None:
    with pytest.raises(DataError, match="unknown task 'party' .did you mean 'parity'"):
        open_tasks(["party"], str(task_folder))
    with pytest.raises(DataError, match="is not a folder"):
        open_tasks(["parity"], str(task_folder / "none"))


def test_a_task_without_its_data(task_folder: Path) -> None:
    (task_folder / "rows.jsonl").unlink()
    manager = open_tasks(["parity"], str(task_folder))
    with pytest.raises(DataError, match="cannot get its data"):
        evaluate_tasks(tiny_model(tiny_config("llama")), tiny_tokenizer(), ["parity"], manager)


def test_a_standard_error_that_cannot_be_computed_is_none() -> None:
    results = {
        "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "n-shot": {"t": 5},
        "versions": {"t": 1.0},
        "n-samples": {"t": {"effective": 3}},
    }
    (measurement,) = harness_measurements(results)
    assert (measurement.value, measurement.stderr, measurement.n) == (0.5, None, 3)
    assert measurement.settings == {"num_fewshot": 5, "task_version": 1.0, "filter": "none"}


def test_a_group_has_the_samples_of_its_tasks() -> None:
    results = {
        "results": {
            "all": {"alias": "all", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "part": {"alias": " - part", "acc,none": 0.25},
            "one": {"alias": "  - one", "acc,none": 0.25},
            "unknown": {"alias": "unknown", "acc,none": 0.5},
            "circle": {"acc,none": 0.5},
            "tag": {"alias": "tag", " ": ""},
        },
        "group_subtasks": {"all": ["part", "two", "one"], "part": ["one"], "unknown": ["no"], "circle": ["circle"]},
        "n-shot": {"one": 2},
        "versions": {"one": 1.0},
        "n-samples": {"one": {"original": 9, "effective": 3}, "two": {"original": 9, "effective": 4}},
    }
    found = {m.dataset: m for m in harness_measurements(results)}
    assert {name: m.n for name, m in found.items()} == {"all": 7, "part": 3, "one": 3}
    assert (found["all"].value, found["all"].stderr) == (0.5, 0.1)
    assert [m.dataset for m in harness_measurements({**results, "group_subtasks": {}})] == ["one"]


def test_a_real_group(task_folder: Path) -> None:
    second = (task_folder / "parity.yaml").read_text().replace("task: parity", "task: parity_two")
    (task_folder / "parity_two.yaml").write_text(second)
    (task_folder / "both.yaml").write_text(
        "group: both\ntask: [parity, parity_two]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    manager = open_tasks(["both"], str(task_folder))
    found = evaluate_tasks(tiny_model(tiny_config("llama")), tiny_tokenizer(), ["both"], manager)
    counts = {(m.dataset, m.metric): m.n for m in found}
    assert counts["both", "acc"] == 16
    assert counts["parity_two", "acc_norm"] == 8


def test_two_filters_of_one_metric_are_separate() -> None:
    results = {
        "results": {
            "gsm8k": {
                "exact_match,strict-match": 0.25,
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.5,
                "exact_match_stderr,flexible-extract": 0.2,
            }
        },
        "n-shot": {"gsm8k": 5},
        "versions": {"gsm8k": 3.0},
        "n-samples": {"gsm8k": {"effective": 8}},
    }
    found = {m.metric: (m.value, m.stderr, m.settings["filter"]) for m in harness_measurements(results)}
    assert found == {
        "exact_match,strict-match": (0.25, 0.1, "strict-match"),
        "exact_match,flexible-extract": (0.5, 0.2, "flexible-extract"),
    }


def test_a_loss_beyond_the_largest_number_has_no_perplexity() -> None:
    assert perplexity_estimate(torch.tensor([1200.0, 800.0], dtype=torch.float64), 20) is None
    assert perplexity_estimate(torch.tensor([LARGEST_LOSS] * 2, dtype=torch.float64), 20) is None
    found = perplexity_estimate(torch.tensor([1.0, 1415.0], dtype=torch.float64), 20)
    assert found is not None and math.isfinite(found.value) and found.stderr is None


def test_a_loss_that_is_no_number_names_model_and_text() -> None:
    whole, damaged = tiny_model(tiny_config("llama")), tiny_model(tiny_config("llama"))
    with torch.no_grad():
        damaged.lm_head.weight[5] = math.nan
    windows = torch.arange(3, 15).view(2, 6)
    for models, name in (((damaged, whole), "new"), ((whole, damaged), "old"), ((damaged, None), "new")):
        with pytest.raises(NotFiniteError, match=f"{name} gives NaN on words.txt, first in lm_head"):
            token_statistics(*models, windows, names=("new", "old"), label="words.txt")


def test_finite_logits_whose_loss_is_no_number() -> None:
    class Extreme(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            logits = torch.full((*input_ids.shape, 20), 3e38)
            logits[..., ::2] = -3e38
            return SimpleNamespace(logits=logits)

    with pytest.raises(NotFiniteError, match="the model predicts the text so badly that no figure holds its loss"):
        token_statistics(Extreme(), None, torch.arange(0, 12, 2)[None])
