"""Shrink a model by 15 % and talk to the result.

python examples/shrink_a_model.py HuggingFaceTB/SmolLM2-135M-Instruct SmolLM2-115M
"""

import sys

from optimum_ishrink import IShrinker

model, output = sys.argv[1:]
result = IShrinker.from_pretrained(model).shrink(target="params=-15%", save_directory=output)

for base, shrunk in result.report.pairs("quality"):
    print(f"{shrunk.metric} on {shrunk.dataset}: {base.value if base else '-'} -> {shrunk.value:.3f}")

prompt = result.tokenizer("The capital of France is", return_tensors="pt").to(result.model.device)
answer = result.model.generate(**prompt, max_new_tokens=12, do_sample=False)
print(result.tokenizer.decode(answer[0], skip_special_tokens=True))
