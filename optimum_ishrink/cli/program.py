"""The program: it parses, runs a verb, and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from typing import Any

from ..core.json_files import without_non_finite
from ..core.processes import is_main_process
from ..core.version import __version__
from ..errors import IShrinkError, RequestError, one_line
from .parser import Parser, add_verbs
from .url_output import run_verb
from .verbs import VERBS


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ishrink`.

    Args:
        argv: The arguments; those of the process when None.

    Returns:
        Exit status: 0 done, 2 bad request, 1 any other failure, such as a task that could not be measured.
    """
    parser = Parser(prog="ishrink", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"optimum-ishrink {__version__}")
    add_verbs(parser)
    return run(parser.parse_args(argv), parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the verb of parsed arguments.

    Args:
        args: Parsed arguments.
        parser: The parser, for its help when no verb was given.

    Returns:
        Exit status.
    """
    if not getattr(args, "verb", None):
        parser.print_help()
        return 0
    try:
        _quiet_libraries()
        # With --json, whatever a library or a task prints goes where the logs go. Of several processes one prints.
        elsewhere = sys.stderr if getattr(args, "json", False) else None if is_main_process() else StringIO()
        with redirect_stdout(elsewhere) if elsewhere else nullcontext():
            result = run_verb(VERBS[args.verb], args)
        if getattr(args, "json", False) and result is not None and is_main_process():
            sys.stdout.write(json.dumps(without_non_finite(result), ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()
        failures = _failures(result)
        if failures:
            sys.stderr.write(f"ishrink {args.verb}: incomplete: {'; '.join(failures)}\n")
        return 1 if failures else 0
    except IShrinkError as error:
        sys.stderr.write(f"ishrink {args.verb}: error: {error}\n")
        return 2 if isinstance(error, RequestError) else 1
    except RuntimeError as error:
        from ..core.micro_batch import ran_out

        if not ran_out(error):
            raise
        sys.stderr.write(
            f"ishrink {args.verb}: error: {one_line(error, 120)}; set fewer windows at once (--batch-size 1), read "
            "the layers from disk (--offload always --device cpu), shorten the windows, or choose a device with more "
            "memory\n"
        )
        return 2
    except KeyboardInterrupt as stop:
        what = str(stop) or "nothing was left half written"
        resume = ""
        if args.verb == "recover":
            resume = "; the same command resumes from its last checkpoint"
        elif args.verb == "evaluate" and args.result_cache is not False:
            resume = "; the same command resumes at the first text or task that is not measured yet"
        sys.stderr.write(f"ishrink {args.verb}: interrupted; {what}{resume}\n")
        return 130
    except BrokenPipeError:
        # The reader closed the pipe: leave without another flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _failures(result: Any) -> list[str]:
    """Return why something that a verb was to measure is not in its report."""
    report = result.get("report", result) if isinstance(result, dict) else None
    return [failure["reason"] for failure in report.get("failures", ())] if isinstance(report, dict) else []


def _quiet_libraries() -> None:
    """Silence the progress bars and advice of other libraries: ours say what is going on.

    Their own variables do it before they are imported, since importing them to silence them would take seconds.
    """
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # torchao, where it is installed, is imported with every model; it warns about kernels for other machines.
    for name in ("lm_eval", "datasets", "httpx", "huggingface_hub", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
