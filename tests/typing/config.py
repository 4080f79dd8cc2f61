"""What a type checker has to report, and what it has to let pass.

mypy reads this file in `make quality`. Strict mode reports an ignore that nothing needs: so each one proves that the
line is an error for people who write it.
"""

from optimum_ishrink import IShrinkConfig, IShrinker

IShrinkConfig(recovery_tokens="many")  # type: ignore[arg-type]
IShrinkConfig(recovery_tokenz=3)  # type: ignore[call-arg]
IShrinkConfig(importance=None)  # type: ignore[arg-type]
IShrinkConfig().seed = 3  # type: ignore[misc]
IShrinkConfig().num_layers  # type: ignore[attr-defined]  # noqa: B018

config = IShrinkConfig(recovery_tokens=400_000, calibration=["self", "notes.txt"], target="params=-15%", seed=1)
tokens: int = config.recovery_tokens
layers: int | None = config.num_hidden_layers
shrinker = IShrinker.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
removed: float = shrinker.plan(config).removed_share
