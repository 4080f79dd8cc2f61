"""Compare importance criteria at the same shape, on text that none of them saw.

python examples/compare_criteria.py path/to/model calibration.txt held_out.txt
"""

import sys

from optimum_ishrink import IShrinkConfig, IShrinker

model, calibration, held_out = sys.argv[1:]
shrinker = IShrinker.from_pretrained(model)
for importance in ("l2-norm", "taylor", "activation-norm", "fisher"):
    config = IShrinkConfig(
        target="params=-15%", importance=importance, calibration=calibration, eval_text=held_out, benchmark=False
    )
    report = shrinker.shrink(config).report
    found = {measurement.metric: measurement for measurement in report.shrunk.quality}
    kl = found["kl_divergence"]
    print(f"{importance:16} KL {kl.value:.3f} ± {kl.stderr or 0:.3f} nats/token over {kl.n} windows")
