from __future__ import annotations

import pytest

from optimum_ishrink.edge.program_log import failure_reason, llama_cpp_failure


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "INFO:x:Loading\nERROR:hf-to-gguf:Model XForCausalLM is not supported\n",
            "Model XForCausalLM is not supported",
        ),
        (
            "Traceback\n  File\nNotImplementedError: BPE pre-tokenizer was not recognized\n",
            "BPE pre-tokenizer was not recognized",
        ),
        ("something else\n", "something else"),
        ("", "it wrote no error message"),
    ],
)
def test_the_line_that_names_the_error(log: str, reason: str) -> None:
    assert failure_reason(log) == reason


def test_llama_cpp_names_why_a_model_does_not_load() -> None:
    log = "llama_model_load: error loading model: missing tensor 'x'\nerror: failed to load\n"
    assert llama_cpp_failure(log) == "missing tensor 'x'"
    assert llama_cpp_failure("error: out of memory") == "out of memory"


def test_an_answered_error_is_the_reason_whatever_the_log_says() -> None:
    # a thread of the runtime may write after it, or into its line
    log = "send_error: task id = 2, error: of the log\n"
    assert failure_reason(log, "of the answer") == llama_cpp_failure(log, "of the answer") == "of the answer"
    assert llama_cpp_failure("x: error loading model: missing tensor 'x'", "failed to load") == "missing tensor 'x'"
