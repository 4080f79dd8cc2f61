"""The profile of a device, from its request to its file: measured here, or by a program that another device runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..architectures.composite import check_alone
from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.limits import check_lengths
from ..core.output import check_output_file, staged_file
from ..errors import RequestError
from ..text.calibration import Calibration
from .browser_probes import write_browser_probes
from .device_program import write_device_program
from .llama_cpp_runtime import LlamaCppRuntime
from .making import Maker
from .options import DEFAULT_RUNTIME, ProfileOptions
from .probe_plan import ProbeRequest
from .profile import Profile, measure_profile
from .runtime import Runtime, open_runtime


def profile_device(
    session: Session, config: IShrinkConfig, options: ProfileOptions, output: Path, *, overwrite: bool = False
) -> Profile:
    """Measure what a model's parts cost on this machine, and write it.

    Args:
        session: The run over the model. Its weights are read once at most.
        config: Which tokens stay in smaller vocabularies.
        options: What is timed.
        output: The file.
        overwrite: Replace an existing file.

    Returns:
        The profile.

    Raises:
        RequestError: The request cannot be met.
        SourceError: The runtime cannot run a probe.
    """
    check_output_file(output, overwrite)
    with tempfile.TemporaryDirectory(prefix="ishrink-profile-") as folder:
        runtime = open_runtime(session, options, Path(folder))
        runtime.check()
        maker = _maker(session, config, options, runtime, Path(folder))
        profile = measure_profile(runtime, maker, model=session.base_name, workload=options.workload)
    with staged_file(output, overwrite=overwrite) as staged:
        profile.write(staged)
    return profile


def write_profile_script(
    session: Session, config: IShrinkConfig, options: ProfileOptions, output: Path, *, overwrite: bool = False
) -> None:
    """Write a program that measures another device with llama.cpp, which needs neither torch nor this package.

    Args:
        session: The run over the model. Its weights are read once, to write the file that headers are made from.
        config: Which tokens stay in smaller vocabularies.
        options: What the program times.
        output: The program, one file for Python.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The request cannot be met, or is of a runtime other than llama.cpp.
    """
    if options.runtime != DEFAULT_RUNTIME:
        raise RequestError(
            f"--script writes a program that measures {DEFAULT_RUNTIME}, not {options.runtime}: leave out --runtime, "
            f"or run `ishrink profile --runtime {options.runtime}` on the device, without --script"
        )
    check_output_file(output, overwrite)
    with tempfile.TemporaryDirectory(prefix="ishrink-profile-") as folder:
        runtime = LlamaCppRuntime(session, options, Path(folder))
        runtime.check_files()
        maker = _maker(session, config, options, runtime, Path(folder))
        with staged_file(output, overwrite=overwrite) as staged:
            request = _request(session, options, runtime)
            write_device_program(runtime.layout, maker, runtime.types, staged, request)


def write_profile_probes(session: Session, config: IShrinkConfig, options: ProfileOptions, folder: Path) -> None:
    """Write what the page of `ishrink app` measures a cost profile with.

    Args:
        session: The run over the model. Its weights are read once, to write the file that headers are made from.
        config: Which tokens stay in smaller vocabularies.
        options: What is timed, in llama.cpp.
        folder: An existing folder.

    Raises:
        RequestError: The request cannot be met.
    """
    with tempfile.TemporaryDirectory(prefix="ishrink-profile-") as place:
        runtime = LlamaCppRuntime(session, options, Path(place))
        runtime.check_files()
        maker = _maker(session, config, options, runtime, Path(place))
        write_browser_probes(runtime.layout, maker, runtime.types, folder, _request(session, options, runtime))


def _request(session: Session, options: ProfileOptions, runtime: Runtime) -> ProbeRequest:
    """Return what another device measures."""
    return ProbeRequest(session.base_name, runtime.name, options.threads, options.workload, options.timing_rounds)


def _maker(session: Session, config: IShrinkConfig, options: ProfileOptions, runtime: Runtime, folder: Path) -> Maker:
    """Return what says which tokens stay, once the model and the prompt's length are checked."""
    check_alone(
        session.source.raw_config,
        session.source.display_name,
        "a profile",
        "shrink it to a target that no device was measured for, such as params=-15%",
    )
    check_lengths(session.source.config, session.source.display_name, prompt_length=options.prompt_length)
    return Maker(session, config, Calibration(config, session), folder, runtime.shaped_for)
