"""Local lm-eval tasks for tests."""

from __future__ import annotations

import json
from pathlib import Path

_CHOICE = """output_type: multiple_choice
doc_to_text: '{{question}}'
doc_to_choice: '{{choices}}'
doc_to_target: '{{answer}}'
metric_list:
  - metric: acc
  - metric: acc_norm
"""
_GENERATE = """output_type: generate_until
doc_to_text: 'Question: {{question}}
  Answer:'
doc_to_target: '{{word}}'
generation_kwargs:
  until: ['~']
  max_gen_toks: 6
  do_sample: false
filter_list:
  - name: first
    filter:
      - function: regex
        regex_pattern: '(.)'
        fallback: none
      - function: take_first
  - name: whole
    filter:
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def add_task(
    folder: Path, name: str, *, body: str = _CHOICE, rows: int = 16, version: float = 1.0, period: int = 2
) -> None:
    """Write a task with its data, by default multiple choice."""
    data = [
        {"question": f"{name} {i}?", "choices": ["yes", "no"], "answer": i % period, "word": "ab"[i % 2]}
        for i in range(rows)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, data)))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/{name}.jsonl\n"
        f"test_split: test\nfewshot_split: test\n{body}metadata:\n  version: {version}\n"
    )


def add_generation_task(folder: Path, name: str, rows: int = 6) -> None:
    """Write a task whose answers are generated."""
    add_task(folder, name, body=_GENERATE, rows=rows)


def add_group(folder: Path, name: str, tasks: list[str], *, weight_by_size: bool = True) -> None:
    """Write a group of tasks."""
    (folder / f"{name}.yaml").write_text(
        f"group: {name}\ntask: {json.dumps(tasks)}\naggregate_metric_list:\n  - metric: acc\n"
        f"    weight_by_size: {str(weight_by_size).lower()}\nmetadata:\n  version: 3\n"
    )
