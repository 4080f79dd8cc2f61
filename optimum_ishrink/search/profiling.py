"""The profile of a device, from its request to its file: measured here, or by a program that another device runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.limits import check_lengths
from ..core.output import check_output_file, staged_file
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS
from ..edge.llama_server import check_runtime, default_threads
from ..edge.write_gguf import check_tools
from ..text.calibration import Calibration
from .device_program import write_device_program
from .making import Maker, write_base_file
from .options import ProfileOptions
from .profile import Profile, measure_profile
from .requirements import check_model
from .template import Template, read_template
from .turns import Workload


def profile_device(
    session: Session, config: IShrinkConfig, options: ProfileOptions, output: Path, *, overwrite: bool = False
) -> Profile:
    """Measure what a model's parts cost on this machine, and write it.

    Args:
        session: The run over the model. Its weights are read once, to write the file that probes are made from.
        config: Which tokens stay in smaller vocabularies.
        options: What is timed.
        output: The file.
        overwrite: Replace an existing file.

    Returns:
        The profile.

    Raises:
        RequestError: The request cannot be met.
        SourceError: llama.cpp cannot run a probe.
    """
    check_runtime()
    with _opened(session, config, options, output, overwrite) as (template, maker):
        threads = options.threads or default_threads()
        profile = measure_profile(template, maker, options.types, threads=threads, **_asked(session, options))
    with staged_file(output, overwrite=overwrite) as staged:
        profile.write(staged)
    return profile


def write_profile_script(
    session: Session, config: IShrinkConfig, options: ProfileOptions, output: Path, *, overwrite: bool = False
) -> None:
    """Write a program that measures another device, which needs neither torch nor this package.

    Args:
        session: The run over the model. Its weights are read once, to write the file that headers are made from.
        config: Which tokens stay in smaller vocabularies.
        options: What the program times.
        output: The program, one file for Python.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The request cannot be met.
    """
    with (
        _opened(session, config, options, output, overwrite) as (template, maker),
        staged_file(output, overwrite=overwrite) as staged,
    ):
        asked = _asked(session, options)
        write_device_program(template, maker, options.types, staged, threads=options.threads, **asked)


@contextmanager
def _opened(
    session: Session, config: IShrinkConfig, options: ProfileOptions, output: Path, overwrite: bool
) -> Iterator[tuple[Template, Maker]]:
    """Check a request; yield the model's file of 16 bits, which is there during the block, and its vocabularies."""
    source = session.source
    check_output_file(output, overwrite)
    check_tools(GGUF_QUANTIZATIONS["bf16"])
    check_model(source, options.types)
    check_lengths(source.config, source.display_name, prompt_length=options.prompt_length)
    with tempfile.TemporaryDirectory(prefix="ishrink-profile-") as folder:
        path = Path(folder) / "base.gguf"
        write_base_file(source, path)
        yield (
            read_template(path, source.binding),
            Maker(session, config, Calibration(config, session), Path(folder)),
        )


def _asked(session: Session, options: ProfileOptions) -> dict[str, Any]:
    return {
        "model": session.base_name,
        "runtime": options.runtime,
        "workload": Workload(prompt=options.prompt_length, context=options.context),
        "rounds": options.timing_rounds,
    }
