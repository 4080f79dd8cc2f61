"""Tasks question by question: groups, generation, failures, and the retained share of each figure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lm_eval
import pytest

from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation import harness
from optimum_ishrink.evaluation.harness import (
    TaskResult,
    collect,
    evaluate_tasks,
    harness_measurements,
    language_model,
    load_tasks,
    open_tasks,
    run_task,
)
from optimum_ishrink.evaluation.task_comparison import compare_tasks
from optimum_ishrink.evaluation.task_groups import GROUPS, TaskRequest, requested_tasks
from tests.helpers.local_tasks import add_generation_task, add_group, add_task
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer


def run(folder: Path, name: str, seed: int = 0, num_fewshot: int | None = None) -> tuple[dict[str, TaskResult], Any]:
    loaded = load_tasks(TaskRequest(name, num_fewshot), open_tasks([name], str(folder)))
    lm = language_model(tiny_model(tiny_config("llama"), seed=seed), tiny_tokenizer(), 4)
    return {task: run_task(loaded, task, lm) for task in loaded.tasks}, loaded.groups


def test_the_thesis_groups_are_their_tasks() -> None:
    assert requested_tasks(["thesis-zero-shot", "x"], None) == (
        TaskRequest("openbookqa", 0),
        TaskRequest("winogrande", 0),
        TaskRequest("hellaswag", 0),
        TaskRequest("x", None),
    )
    assert requested_tasks(["thesis-few-shot"], None) == (TaskRequest("mmlu", 5),)
    assert requested_tasks(["thesis-few-shot", "mmlu"], 5) == (TaskRequest("mmlu", 5),)
    texts = [path.read_text() for path in (Path(lm_eval.__file__).parent / "tasks").glob("*/**/*.yaml")]
    for task in (task for tasks, _ in GROUPS.values() for task in tasks):
        assert any(re.search(rf"^(task|group): {task}$", text, re.M) for text in texts), task


def test_a_group_has_its_own_number_of_examples() -> None:
    with pytest.raises(DataError, match="thesis-few-shot is 5-shot by definition.*name its tasks: mmlu"):
        requested_tasks(["thesis-few-shot"], 0)
    with pytest.raises(DataError, match="mmlu is requested with two numbers of examples"):
        requested_tasks(["thesis-few-shot", "mmlu"], None)


def test_groups_are_known_with_a_folder_of_tasks(tmp_path: Path) -> None:
    for task in ("openbookqa", "winogrande", "hellaswag"):
        add_task(tmp_path, task, rows=4)
    manager = open_tasks(["thesis-zero-shot"], str(tmp_path))
    with pytest.raises(DataError, match="unknown task 'thesis-zero' .did you mean 'thesis-zero-shot'"):
        open_tasks(["thesis-zero"], str(tmp_path))
    with pytest.raises(DataError, match="is 0-shot by definition"):
        open_tasks(["thesis-zero-shot"], str(tmp_path), 3)
    found = evaluate_tasks(tiny_model(tiny_config("llama")), tiny_tokenizer(), ["thesis-zero-shot"], manager)
    assert {m.dataset for m in found} == {"openbookqa", "winogrande", "hellaswag"}
    assert all(m.settings == {"num_fewshot": 0, "task_version": 1.0, "filter": "none"} for m in found)


def test_a_task_unknown_to_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_task(tmp_path, "quiz")
    # The folder replaces lm-eval's own tasks, whose index takes seconds.
    monkeypatch.setattr(harness, "_builtin_tasks", lambda: harness._task_manager(str(tmp_path)))
    assert "quiz" in open_tasks(["quiz"], None).all_tasks
    with pytest.raises(
        DataError, match="unknown task 'quizz'; `lm-eval ls tasks` lists.*, and thesis-few-shot, thesis-z"
    ):
        open_tasks(["quizz"], None)


@pytest.mark.parametrize("num_fewshot", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_figures_are_those_of_lm_eval_alone(tmp_path: Path, num_fewshot: int | None) -> None:
    add_task(tmp_path, "quiz")
    add_generation_task(tmp_path, "words")
    names = ["quiz", "words"]
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    manager = open_tasks(names, str(tmp_path))
    ours = evaluate_tasks(model, tokenizer, names, manager, num_fewshot=num_fewshot, batch_size=4, seed=5)
    theirs = lm_eval.simple_evaluate(
        model=lm_eval.models.huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=names,
        task_manager=open_tasks(names, str(tmp_path)),
        num_fewshot=num_fewshot,
        bootstrap_iters=1000,
        random_seed=5,
        numpy_random_seed=5,
        torch_random_seed=5,
        fewshot_random_seed=5,
    )
    assert sorted(map(repr, ours)) == sorted(map(repr, harness_measurements(theirs)))
    assert {m.settings["num_fewshot"] for m in ours} == {num_fewshot or 0}


def test_generated_answers_are_matched_exactly(tmp_path: Path) -> None:
    add_generation_task(tmp_path, "words")
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    manager = open_tasks(["words"], str(tmp_path))
    found = {m.metric: m for m in evaluate_tasks(model, tokenizer, ["words"], manager)}
    assert set(found) == {"exact_match,first", "exact_match,whole"}
    assert found["exact_match,first"].n == 6
    # A model that writes `a` whatever it is asked: right wherever `a` is asked for, which is every other time.
    import torch

    letter = tokenizer("a")["input_ids"][0]
    forward = model.forward

    def writes_a(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = torch.nn.functional.one_hot(
            torch.full(output.logits.shape[:-1], letter), output.logits.shape[-1]
        ).float()
        return output

    model.forward = writes_a
    found = {m.metric: m for m in evaluate_tasks(model, tokenizer, ["words"], open_tasks(["words"], str(tmp_path)))}
    assert found["exact_match,first"].value == 0.5
    assert found["exact_match,whole"].value == 0


def test_results_are_the_same_after_a_round_trip(tmp_path: Path) -> None:
    add_task(tmp_path, "quiz")
    results, _ = run(tmp_path, "quiz")
    result = results["quiz"]
    assert TaskResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert len(result.questions) == len(set(result.questions)) == 16
    assert set(result.answers) == {"acc,none", "acc_norm,none"}
    assert result.metrics["acc,none"] == pytest.approx(sum(result.answers["acc,none"]) / 16)


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_groups_are_compared_as_they_are_weighted(tmp_path: Path, weight_by_size: bool) -> None:
    add_task(tmp_path, "short", rows=4, period=1)
    add_task(tmp_path, "long", rows=20)
    add_group(tmp_path, "both", ["short", "long"], weight_by_size=weight_by_size)
    (base, groups), (shrunk, _) = run(tmp_path, "both", seed=0), run(tmp_path, "both", seed=1)
    old, new = collect(base, groups), collect(shrunk, groups)
    measured = {(m.dataset, m.metric): m for m in harness_measurements(new)}
    before = {(m.dataset, m.metric): m for m in harness_measurements(old)}
    found = {(c.dataset, c.metric): c for c in compare_tasks(base, shrunk, old, new, groups)}
    assert set(found) == {
        ("short", "acc"),
        ("short", "acc_norm"),
        ("long", "acc"),
        ("long", "acc_norm"),
        ("both", "acc"),
    }
    for key, comparison in found.items():
        assert comparison.difference == pytest.approx(measured[key].value - before[key].value)
        assert comparison.n == measured[key].n
    assert found["both", "acc"].n == 24
    assert measured["both", "acc"].settings["task_version"] == "3"
    pooled = sum(sum(result.answers["acc,none"]) for result in shrunk.values()) / 24
    alike = sum(sum(result.answers["acc,none"]) / len(result.questions) for result in shrunk.values()) / 2
    assert measured["both", "acc"].value == pytest.approx(pooled if weight_by_size else alike)
    assert pooled != pytest.approx(alike)


def test_a_group_that_lacks_a_task_has_no_figure(tmp_path: Path) -> None:
    add_task(tmp_path, "one", rows=4)
    add_task(tmp_path, "two", rows=4)
    add_group(tmp_path, "both", ["one", "two"])
    results, groups = run(tmp_path, "both")
    del results["two"]
    assert {m.dataset for m in harness_measurements(collect(results, groups))} == {"one"}


def test_figures_other_than_means_of_answers_are_not_compared() -> None:
    def result(value: float, questions: tuple[str, ...] = ("0", "1"), better: dict[str, bool] | None = None) -> Any:
        figures = {"f1,none": value, "f1_stderr,none": "N/A", "sample_len": 2}
        known = {"f1": True} if better is None else better
        return {"t": TaskResult("t", figures, 0, 1, known, questions, {"f1,none": (0.0, 1.0)})}

    def compared(base: Any, shrunk: Any) -> int:
        return len(compare_tasks(base, shrunk, collect(base, {}), collect(shrunk, {}), {}))

    assert compared(result(0.5), result(0.5)) == 1
    assert compared(result(0.5), result(0.7)) == 0  # a corpus figure
    assert compared(result(0.5), result(0.5, ("0", "2"))) == 0  # other questions
    assert compared(result(0.5), result(0.5, better={})) == 0  # nobody knows whether more is better


def test_the_fingerprint_depends_on_settings_questions_and_examples(tmp_path: Path) -> None:
    def fingerprint(num_fewshot: int | None = None) -> str:
        loaded = load_tasks(TaskRequest("quiz", num_fewshot), open_tasks(["quiz"], str(tmp_path)))
        return loaded.fingerprint("quiz")

    add_task(tmp_path, "quiz")
    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(0) == first
    assert fingerprint(2) != first
    add_task(tmp_path, "quiz", version=2.0)
    assert fingerprint() != first
    add_task(tmp_path, "quiz")
    rows = (tmp_path / "quiz.jsonl").read_text()
    (tmp_path / "quiz.jsonl").write_text(rows.replace("quiz 3?", "quiz 33?"))
    assert fingerprint() != first
    (tmp_path / "quiz.jsonl").write_text(rows)
    assert fingerprint() == first
    (tmp_path / "scores.py").write_text("def called_by_a_function_of_a_task(): ...")
    assert fingerprint() != first


def test_errors_of_a_task_are_one_line(tmp_path: Path) -> None:
    add_task(tmp_path, "quiz")
    manager = open_tasks(["quiz"], str(tmp_path))
    (tmp_path / "quiz.jsonl").unlink()
    with pytest.raises(DataError, match="quiz cannot get its data.*give it local data.*--include-path") as caught:
        load_tasks(TaskRequest("quiz", None), manager)
    assert str(tmp_path) not in str(caught.value)  # it appears in reports
    assert "quiz.jsonl" in str(caught.value)
    add_task(tmp_path, "odd")
    (tmp_path / "odd.yaml").write_text((tmp_path / "odd.yaml").read_text().replace("multiple_choice", "no_such_type"))
    with pytest.raises(DataError, match=r"odd cannot be loaded .ValueError: .*no_such_type"):
        load_tasks(TaskRequest("odd", None), open_tasks(["odd"], str(tmp_path)))
    add_task(tmp_path, "bad")
    (tmp_path / "bad.yaml").write_text(
        (tmp_path / "bad.yaml").read_text().replace("{{answer}}", '{{answer // (question != "bad 3?")}}')
    )
    with pytest.raises(DataError, match="bad failed .ZeroDivisionError: "):
        run(tmp_path, "bad")
