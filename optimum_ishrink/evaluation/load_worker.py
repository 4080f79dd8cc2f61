"""The program that loads checkpoints in fresh processes; `fresh_process.py` runs it.

It takes a list of jobs as JSON, its only argument, and writes one line of JSON for each. It imports nothing of this
package, so that what it measures is what a user of plain transformers has. Where the system can fork, it imports torch
and transformers once and computes nothing; each job then runs in a fork of it.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint and, after a warm load, read a prompt and decode a few tokens.

    Memory does not depend on where the file came from, so it is measured after a warm load only.

    Args:
        job: `folder`, `auto_class`, `dtype`, `device`, `threads`, `prompt_length`, `new_tokens` and `cold`.

    Returns:
        `load_seconds`, until the first token; after a warm load also memory peaks in bytes.
    """
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.zeros(1, device=device)  # starting CUDA is not loading
        torch.cuda.reset_peak_memory_stats(device)
    before = peak_resident_bytes()
    start = time.perf_counter()
    opener = getattr(transformers, job.get("auto_class", "AutoModelForCausalLM"))
    model = opener.from_pretrained(job["folder"], dtype=getattr(torch, job["dtype"])).to(device).eval()
    with torch.inference_mode():
        # Weights may be mapped and read only on use: one token needs them all.
        model(torch.tensor([[0]], device=device)).logits.argmax().item()
        seconds = time.perf_counter() - start
        if job["cold"]:
            return {"load_seconds": seconds}
        vocabulary = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocabulary, (1, job["prompt_length"]), generator=generator).to(device)
        # transformers 5.40 removes the older of the two names.
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        cached = name in inspect.signature(model.forward).parameters
        cache: dict[str, Any] = {}
        for _ in range(1 + job["new_tokens"]):
            output = model(tokens, use_cache=cached, logits_to_keep=1, **cache)
            token = output.logits[:, -1:].argmax(-1)
            # A class that keeps no cache reads the whole text again for every token.
            cache, tokens = ({name: output[name]}, token) if cached else ({}, torch.cat([tokens, token], dim=1))
    return {
        "load_seconds": seconds,
        "peak_memory_bytes": peak_resident_bytes(),
        "libraries_bytes": before,
        "device_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def evict(files: list[Path]) -> bool:
    """Drop files from the system's cache of file contents, and return whether that worked.

    Pages mapped by another process are not dropped, and some systems drop none.

    Args:
        files: The files.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return all(cached_share(file) < 0.01 for file in files)


def cached_share(file: Path) -> float:
    """Return the share of a file's pages that the system holds in memory; 1 where that is unknown.

    Args:
        file: The file.
    """
    import ctypes
    import mmap

    size = file.stat().st_size
    if size == 0:
        return 0.0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        view = (ctypes.c_char * size).from_buffer(mapped)
        try:
            library = ctypes.CDLL(None, use_errno=True)
            failed = library.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        except (AttributeError, OSError, TypeError):
            failed = True
        finally:
            del view  # the map cannot be closed while a view of it exists
    return 1.0 if failed else sum(page & 1 for page in pages) / len(pages)


def warm(files: list[Path]) -> None:
    """Read files from beginning to end, so that the system holds them in memory.

    Args:
        files: The files.
    """
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass


def run_in_fork(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a fork of this process.

    Args:
        job: As of `run_job`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                json.dump(run_guarded(job), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the process was killed by signal {os.WTERMSIG(status)}"}


def run_guarded(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; on an exception, return it in one line as the result.

    Args:
        job: As of `run_job`.
    """
    try:
        return run_job(job)
    except Exception as error:  # the parent process reports it
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> None:
    """Run the jobs of the first argument; each also has `cold`, and `fork`."""
    jobs = json.loads(sys.argv[1])
    if any(job["fork"] for job in jobs):
        import torch  # noqa: F401
        import transformers.generation
        import transformers.modeling_utils  # noqa: F401
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with results
        for job in jobs:
            files = sorted(Path(job["folder"]).glob("*.safetensors"))
            if job["cold"] and not evict(files):
                result: dict[str, Any] = {"not_evicted": True}
            else:
                if not job["cold"]:
                    warm(files)
                result = run_in_fork(job) if job["fork"] else run_guarded(job)
            output.write(json.dumps(result) + "\n")
            output.flush()


if __name__ == "__main__":
    main()
