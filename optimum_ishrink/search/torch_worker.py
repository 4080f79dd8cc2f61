"""transformers in a fresh process: `python -m optimum_ishrink.search.torch_worker`, JSON lines in and out.

The first line on standard input says what to load. Each further line gets one answer, and the process ends with its
input.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from ..edge.worker import serve


def measure(request: dict[str, Any], turns: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Load a checkpoint, measure its memory, and time a prompt in every turn.

    Args:
        request: `model` (a folder), `dtype`, `device`, `threads`, `prompt`, `new_tokens`, `vocabulary`, `context`.
        turns: One for each turn; what they say is not read.

    Yields:
        First `build`, and `memory_bytes` (see `measure_memory`; None where the system does not report it). Then for
        each turn `first` (seconds to the first token) and `decode` (tokens per second
        after it), both of the median reading and token.
    """
    import torch

    from ..checkpoint.loading import load_model
    from ..evaluation.latency import READINGS, time_in_turn, undisturbed

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    model = load_model(Path(request["model"]), getattr(torch, request["dtype"]), device)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(request["vocabulary"], (1, request["prompt"]), generator=draw)
    with undisturbed({"model": model}):
        memory = measure_memory(model, prompt, request["context"])
        time_in_turn([model], prompt[:, :16], 2)  # kernels are chosen in the first run
        yield {"build": build_name(device), "memory_bytes": memory}
        for _ in turns:
            (times,) = time_in_turn([model], prompt, request["new_tokens"])
            # Medians: what else the machine does for a moment is not the model's time.
            yield {"first": median(times[:READINGS]), "decode": 1 / median(times[READINGS:])}


def measure_memory(model: Any, prompt: Any, context: int) -> int | None:
    """Return what a loaded model takes: weights, the KV cache of a context, and activations, in bytes.

    It reads the prompt, and decodes a token at the end of the context; a class that keeps no cache reads all of the
    context again for it. On CUDA it is the most that torch's allocator held. On the CPU it is the bytes of the
    weights, and by how much the process grew at most after it had loaded them: libraries and what loading left behind
    do not count.

    Args:
        model: The model.
        prompt: Token ids, shape (1, length).
        context: Tokens that the KV cache holds at the end.
    """
    import torch

    from ..core.key_value_cache import keeps_cache, step_reader

    cuda = model.device.type == "cuda"
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    weights = sum(tensor.nbytes for tensor in tensors.values())
    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    before = None if cuda else _reset_peak()
    read, prompt = step_reader(model), prompt.to(model.device)
    missing = max(context - 1 - prompt.shape[1], 0)
    with torch.inference_mode():
        output, read_before = read(prompt, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
        del output
        if keeps_cache(model):
            fill(read_before, missing)
        else:  # it reads all of the context again
            read_before = torch.cat([prompt, token.expand(-1, missing)], dim=1)
        read(token, read_before, logits_to_keep=1)
    if cuda:
        return int(torch.cuda.max_memory_allocated(model.device))
    return None if before is None else weights + _resident("VmHWM") - before


def fill(cache: Any, tokens: int) -> None:
    """Add tokens to a KV cache, as if they had been read: each layer gets its last ones again.

    Args:
        cache: The cache, of one token or more.
        tokens: How many; none where it is negative.
    """
    while tokens > 0:
        step = tokens
        for number, layer in enumerate(cache.layers):
            step = min(step, layer.keys.shape[-2]) if number == 0 else step
            keys, values = (each[..., -min(step, each.shape[-2]) :, :].clone() for each in (layer.keys, layer.values))
            cache.update(keys, values, number)
        tokens -= step


def _reset_peak() -> int | None:
    """Let the peak of resident memory begin anew; return what is resident, None where the system cannot."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what loading freed would be used again, and not count
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def build_name(device: Any) -> str:
    """Return the versions that compute, and on what.

    Args:
        device: The device.
    """
    import torch
    import transformers

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"torch {torch.__version__}, transformers {transformers.__version__}, {where}"


if __name__ == "__main__":
    serve({"measure": measure})
