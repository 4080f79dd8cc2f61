"""A report of a device as the page saves it."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

ROUNDS = 12


def device_report(*, faster: float = 1.5, noise: float = 0.01, **changes: Any) -> dict[str, Any]:
    """Return a report; `changes` replace entries, nested ones by names with `__` between them.

    Args:
        faster: How much faster the shrunk model is.
        noise: Share by which a turn differs from another.
        **changes: The entries.
    """
    draw = random.Random(0)

    def rounds(value: float, turns: int, count: int) -> list[list[float]]:
        return [[value * (1 + noise * draw.uniform(-1, 1)) for _ in range(turns)] for _ in range(count)]

    samples = []
    for role, speed in (("base", 1.0), ("shrunk", faster)):
        for metric, setting, value, turns, count in (
            ("model_load_seconds", ", warm cache", 0.8 / speed, 1, ROUNDS),
            ("model_load_seconds", ", cold cache", 2 / speed, 1, 3),
            ("time_to_first_token_seconds", ", prompt 64", 0.5 / speed, 2, ROUNDS),
            ("decode_tokens_per_second", ", prompt 64", 20 * speed, 2, ROUNDS),
            ("response_seconds", ", prompt 64", 2.1 / speed, 2, ROUNDS),
            ("peak_memory_bytes", "", 3e8 / speed, 1, 1),
        ):
            values = rounds(value, turns, count)
            samples.append({"role": role, "metric": metric, "setting": setting, "values": values})
    found: dict[str, Any] = {
        "schema": 1,
        "kind": "ishrink-device-report",
        "created": "2026-11-29T20:40:00Z",
        "device": {
            "name": "Pixel 9",
            "user_agent": "Mozilla/5.0",
            "platform": "Android",
            "browser": "Chromium 150",
            "cores": 8,
            "memory_gb": 8,
            "mobile": True,
        },
        "runtime": {
            "name": "llama.cpp",
            "package": "@wllama/wllama 3.13.0",
            "build": "b12211-7d7f028",
            "threads": 2,
            "backend": "cpu",
            "cross_origin_isolated": True,
        },
        "page": {"version": "0.1.0"},
        "settings": {"rounds": ROUNDS, "prompt_lengths": [64], "new_tokens": 32, "context": 512},
        "models": [
            {
                "role": role,
                "name": name,
                "file": f"{name}-q4_0.gguf",
                "bytes": nbytes,
                "sha256": 64 * digit,
                "quantization": "q4_0",
                "vocabulary": 49152,
            }
            for role, name, nbytes, digit in (("base", "large", 90_000_000, "a"), ("shrunk", "small", 70_000_000, "b"))
        ],
        "samples": samples,
        "comparisons": [{"metric": "decode_tokens_per_second", "verdict": "a lie"}],
        "notes": ["memory was measured once"],
        "profile": None,
    }
    for name, value in changes.items():
        *place, last = name.split("__")
        entry = found
        for key in place:
            entry = entry[int(key)] if isinstance(entry, list) else entry[key]
        if isinstance(entry, list):
            entry[int(last)] = value
        else:
            entry[last] = value
    return copy.deepcopy(found)


def save_report(path: Path, report: Any = None, **changes: Any) -> Path:
    """Save a report, by default that of `device_report`."""
    path.write_text(json.dumps(device_report(**changes) if report is None else report))
    return path
