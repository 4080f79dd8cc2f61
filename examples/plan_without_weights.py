"""What would a shape save? Only config.json is read: no weights, no download of them, a second.

python examples/plan_without_weights.py path/to/config.json
"""

import json
import sys
from pathlib import Path

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import resolve_shape

raw = json.loads(Path(sys.argv[1]).read_text())
_, binding = bind_config(raw)
total = binding.num_parameters()
for percent in (10, 15, 20):
    shape = resolve_shape(binding, ShapeOptions(target=f"params=-{percent}%"))
    count = binding.num_parameters(shape)
    print(f"-{percent}%: {shape} has {count:,} parameters (-{1 - count / total:.2%})")
