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
