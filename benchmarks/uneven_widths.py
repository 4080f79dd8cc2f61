"""Layers of unlike width against layers of one width, with the same number of neurons in all.

    python benchmarks/uneven_widths.py MODEL DATA WORK --output uneven.jsonl [--widths 1344,1152] [--floors 1,0.75,0.5]
    python benchmarks/uneven_widths.py MODEL DATA WORK --output uneven.jsonl --table

MODEL is a checkpoint's folder, of the architecture llama; DATA a folder with the text files of `CALIBRATION` and
`TEXTS`; WORK one for the GGUF files. A width is the mean of all layers. A floor is the smallest width of a layer, as a
share of that mean: with 1 all layers have it. Above their floors, blocks of neurons are retained by their scores,
compared across layers. No config of Hugging Face has such layers, so the model is cut in memory and measured there;
then it is written as GGUF, and llama.cpp's predictions are compared with its own. Rows that are in the output already
are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from stored_values import TEXTS
from uneven_file import SOURCE, write_uneven

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.architectures.binding import Binding
from optimum_ishrink.architectures.description import NEURONS
from optimum_ishrink.architectures.slicing import slice_tensor
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.agreement import measure_agreement
from optimum_ishrink.edge.tensor_names import gguf_names
from optimum_ishrink.evaluation.inputs import EvaluationInputs
from optimum_ishrink.evaluation.text_quality import bits_per_byte, window_figures
from optimum_ishrink.importance.stage import score
from optimum_ishrink.planning.selection import choose_units
from optimum_ishrink.planning.stage import check_shape, plan
from optimum_ishrink.report.plan import Choice, Plan
from optimum_ishrink.surgery.compensation import compensate
from optimum_ishrink.surgery.units import retained_units
from optimum_ishrink.text.calibration import Calibration

CALIBRATION = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
MULTIPLE = 32
"""Widths are multiples of this, which llama.cpp's plain quantisations need."""


def allocate(scores: torch.Tensor, mean: int, floor: float) -> list[int]:
    """Return the width of each layer: the blocks with the highest scores of all layers, above a floor in each.

    Args:
        scores: Importance of each neuron, shape (layers, neurons).
        mean: The mean width, a multiple of `MULTIPLE`.
        floor: The smallest width, as a share of the mean; one block is left in any case.
    """
    blocks = scores.sort(dim=1, descending=True).values.view(len(scores), -1, MULTIPLE).sum(-1)
    blocks[:, : max(1, int(floor * mean) // MULTIPLE)] = math.inf
    best = blocks.flatten().topk(len(scores) * mean // MULTIPLE).indices
    # Blocks of a layer come in the order of their scores, so that those that are retained are its first.
    return (torch.bincount(best // blocks.shape[1], minlength=len(scores)) * MULTIPLE).tolist()


def uneven_plan(even: Plan, scores: torch.Tensor, widths: Sequence[int]) -> Plan:
    """Return a plan with other widths, which only a model in memory can have.

    Args:
        even: The plan with one width.
        scores: Importance of each neuron, shape (layers, neurons).
        widths: The width of each layer.
    """
    units = tuple(choose_units(scores, [layer], width)[0] for layer, width in enumerate(widths))
    return replace(even, units={NEURONS: units})


def cut_in_memory(model: Any, binding: Binding, of: Plan, refitted: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Cut the MLPs of a loaded model, and return their weights by name.

    Args:
        model: The model; it is changed.
        binding: Its binding.
        of: What is retained of each layer.
        refitted: Weights that replace what was cut, by name.
    """
    weights = {}
    for bound in binding.tensors.values():
        if bound.layer is None or not bound.counts("ffn"):
            continue
        linear = model.get_submodule(bound.module)
        kept = slice_tensor(linear.weight.detach(), bound, binding.sizes, retained_units(binding, of, bound.layer))
        weight = refitted.get(bound.name, kept).to(kept.dtype)
        linear.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        linear.out_features, linear.in_features = weight.shape
        weights[bound.name] = linear.weight
    return weights


class Experiment:
    """One model with its scores, and the texts that it is calibrated and measured on.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = open_source(args.model)
        self.config = IShrinkConfig(
            intermediate_size=int(args.widths[0]),
            calibration=[str(args.data / name) for name in CALIBRATION],
            calibration_samples=args.samples,
            eval_text=[text if text == "pydoc" else str(args.data / text) for text in TEXTS],
            eval_samples=args.eval_samples,
            eval_length=256,
            dtype=args.dtype,
            device="cpu",
            seed=args.seed,
        )
        self.session = Session(self.source, self.config)
        self.calibration = Calibration(self.config, self.session)
        self.windows = EvaluationInputs(self.config, self.session).windows()
        self.scores = score(self.session, self.config, self.calibration, [NEURONS])[NEURONS]
        self.whole = args.work / f"{args.model.name}-whole.gguf"
        if not self.whole.exists():
            IShrinker.from_pretrained(args.model).export(self.whole, quantization="bf16", verify=False)

    def measure(self, mean: int, floor: float, compensation: str) -> dict[str, Any]:
        """Cut the model, and measure it here and in llama.cpp.

        Args:
            mean: The mean width.
            floor: The smallest, as a share of the mean.
            compensation: `ridge` or `none`.
        """
        source, session = self.source, self.session
        config = self.config.replace(intermediate_size=mean)
        even = plan(source, config, check_shape(source, config), {NEURONS: self.scores}, Choice())
        widths = allocate(self.scores, mean, floor)
        made = uneven_plan(even, self.scores, widths)
        refitted: dict[str, torch.Tensor] = {}
        if compensation == "ridge":
            some = slice(self.args.repair_samples)  # windows come in random order
            text, kinds = self.calibration.windows[some], self.calibration.kinds[some]
            compensate(session.model, source.binding, made, text, refitted.__setitem__, kinds=kinds)
        model = source.load_model(session.dtype, session.device)
        weights = cut_in_memory(model, source.binding, made, refitted)
        row: dict[str, Any] = {"mean": mean, "floor": floor, "compensation": compensation, "seed": self.args.seed}
        row["widths"], row["texts"] = widths, {}
        for label, windows in self.windows.items():
            _, found = window_figures(model, session.model, windows, label)
            bits = bits_per_byte(found)
            assert bits is not None
            row["texts"][label] = {"bits": (bits.value, bits.stderr), "divergence": found.divergence}
        return row | self._in_llama_cpp(model, weights, row)

    def _in_llama_cpp(self, model: Any, weights: Mapping[str, torch.Tensor], row: Mapping[str, Any]) -> dict[str, Any]:
        names = gguf_names(self.source.binding, SOURCE)
        file = self.args.work / f"{self.args.model.name}-{row['mean']}-{row['floor']}-{row['compensation']}.gguf"
        write_uneven(self.whole, {names[name]: weight for name, weight in weights.items()}, file)
        agreement = measure_agreement(model.float(), self.session.tokenizer, file, threads=1)
        size = file.stat().st_size
        if not self.args.keep:
            file.unlink()
        return {"bytes": size, "agreement": (agreement.divergence.value, agreement.divergence.stderr)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, each with its difference from the one with one width."""
    texts = list(rows[0]["texts"])
    head = ["mean width", "floor", "widths", "repair", *(f"bits per byte, {text}" for text in texts)]
    head += [*(f"KL, {text}" for text in texts), "mean KL", "against floor 1", "bytes", "KL in llama.cpp"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda row: (-row["mean"], row["compensation"], -row["floor"], row["seed"])):
        even = next((each for each in rows if _is_even(each, row)), None)
        cells = [f"{row['mean']:,}", f"{row['floor']:g}", f"{min(row['widths']):,} to {max(row['widths']):,}"]
        cells += [row["compensation"], *(_with_error(*row["texts"][text]["bits"]) for text in texts)]
        cells += [_with_error(*_mean(row["texts"][text]["divergence"])) for text in texts]
        cells.append(f"{_mean(_divergence(row))[0]:.3f}")
        pairs = [] if even is None or even is row else zip(_divergence(row), _divergence(even), strict=True)
        differences = [new - old for new, old in pairs]
        cells += ["" if not differences else "{:+.3f} ± {:.3f}".format(*_mean(differences))]
        cells += [f"{row['bytes']:,}", f"{row['agreement'][0]:.5f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_even(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return row["floor"] == 1 and all(row[key] == other[key] for key in ("mean", "compensation", "seed"))


def _divergence(row: Mapping[str, Any]) -> list[float]:
    """Return the divergence in each window of all texts."""
    return [value for text in row["texts"].values() for value in text["divergence"]]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean with its standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return found.mean().item(), found.std().item() / math.sqrt(len(values))


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def requests(args: argparse.Namespace) -> Iterator[tuple[int, float, str]]:
    """Yield mean width, floor and compensation of each row that was asked for."""
    for mean in map(int, args.widths):
        for compensation in args.compensation.split(","):
            for floor in args.floors:
                yield mean, floor, compensation


def main() -> None:
    """Run the experiment, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--widths", type=_numbers, default=[1344, 1152])
    parser.add_argument("--floors", type=_numbers, default=[1, 0.75, 0.5])
    parser.add_argument("--compensation", default="ridge", help="ridge, none or both, separated by a comma")
    parser.add_argument("--samples", type=int, default=64, help="windows of calibration text, 256 tokens each")
    parser.add_argument("--repair-samples", type=int, help="the repair reads only so many of them")
    parser.add_argument("--eval-samples", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the GGUF files")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    done = {(row["mean"], row["floor"], row["compensation"], row["seed"]) for row in rows}
    wanted = [] if args.table else [each for each in requests(args) if (*each, args.seed) not in done]
    experiment = Experiment(args) if wanted else None
    for each in wanted:
        assert experiment is not None
        rows.append(experiment.measure(*each))
        with args.output.open("a") as output:
            output.write(json.dumps(rows[-1]) + "\n")
        print(table(rows), flush=True)
    if not wanted:
        print(table(rows))


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
