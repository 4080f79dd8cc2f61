"""IShrinkConfig: everything a run can be asked for, validated when it is made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml
from optimum.configuration_utils import BaseConfig

from .architectures.spec import DIMENSIONS
from .core.json_files import read_json, write_json
from .errors import RequestError, SourceError, unknown_name
from .planning.plan import ShapeRequest
from .recovery.settings import RecoverySettings
from .recovery.trainable import LoraSettings
from .report.files import CONFIG_FILE
from .text.sources import TextSource
from .validation import LISTS, NUMBERS, check_values, whole_numbers


class IShrinkConfig(BaseConfig):  # type: ignore[misc]
    """What to shrink, how to choose, and what to measure. Saved as `ishrink_config.json` with the result.

    Every name is also a command-line flag, with dashes for underscores. Unknown names are errors.

    Args:
        num_hidden_layers: Layers of the result.
        num_key_value_heads: KV groups of the result; all query heads of a group go with it.
        num_attention_heads: Query heads of the result; by default those of the KV groups that stay. Fewer are taken
            from within each group.
        intermediate_size: MLP neurons of every layer of the result, or of every expert.
        target: `"params=-15%"` or `"params=115M"`, solved over the dimensions that are not given.
        prune: Dimensions that the target moves, each of them: `num_hidden_layers`, `num_key_value_heads`,
            `intermediate_size`. By default those that hurt least, of all that are not given.
        intermediate_multiple: What MLP widths are kept to. By default the largest power of two up to 1/32 of the
            width, at most 256: see `optimum_ishrink.planning.default_multiple`.
        for_runtime: `llama.cpp` keeps MLP widths to multiples of 256, which its K-quants want of a row, or where that
            misses the target or hurts more, of 32, which its plain quantisations want. None keeps to no runtime's.
        keep_first_layers: Layers at the beginning that always stay. By default four, in shallow models a quarter.
        keep_last_layers: Layers at the end that always stay. By default two, in shallow models an eighth.
        merge_key_value_heads: Merge KV heads into means instead of removing them; all query heads stay.
        allow_class_change: Write a shape that the model's own class refuses as another class that computes the same,
            such as mistral for llama.
        importance: Criterion for KV groups, query heads and MLP neurons. `fisher` by default: of all criteria it left
            the lowest KL divergence on SmolLM2-135M-Instruct (docs/quality.md). `taylor` and `l2-norm` also see into
            fused experts.
        importance_group_size: Consecutive neurons that are scored as one unit; each gets an equal share of its score.
            It has to divide the MLP width. By default 1, and for criteria that run the model once per unit
            (`logits-mse`, `thesis-mix`) what leaves at most 32 groups in a layer. A cut that is not a multiple of it
            splits one group of a layer.
        importance_samples: Windows of the calibration text that scores are taken on, at most. Scores settle on far
            fewer tokens than compensation wants, and some criteria need backward passes.
        score_cache: Keep scores on disk (in `ISHRINK_CACHE`, or `ishrink` in the Hugging Face home), and take them
            from there when model, text, criterion and settings are the same.
        layer_importance: Criterion for layers.
        layer_selection: `one-shot` removes the lowest scored layers; `greedy` scores again after each removal, with
            criteria that measure one; `contiguous` removes the adjacent layers that cost least together.
        compensation: `ridge`, the default, solves the projections that read what was cut anew, in closed form, on the
            calibration text; `none` leaves them as they were cut. The more text, and the more kinds of it, the more it
            gives back.
        calibration: Text sources (`self`, .txt, .jsonl, Hub data sets), mixed in equal shares. `self` by default: it
            needs no data and no network.
        calibration_samples: Windows of calibration text.
        calibration_length: Tokens in each.
        recovery: Sum of losses to train the result with, such as `kl` or `kl+hidden:0.1`; `none` leaves it as it was
            cut. `docs/recovery.md` has the losses.
        recovery_data: Text sources to train on, mixed in equal shares. `self` by default.
        recovery_tokens: Tokens of that text, at most; those held out to choose the best checkpoint are among them.
        recovery_length: Tokens in a window.
        recovery_labels: Tokens that `ce` is taken on: all of the `text`, or those of `answers` alone.
        recovery_teacher: Another teacher than the unpruned model: Hub id or folder of a model with the same tokenizer.
        recovery_temperature: What logits are divided by before `kl` compares them.
        recovery_top_k: Compare only the teacher's k most likely tokens one by one and all others as one. With several
            epochs or a `recovery_cache` the teacher then runs once. All tokens when None.
        recovery_train: What is trained: `lora`, `full`, or parts such as `norms+last:2+head`.
        recovery_lora_rank: Rank of the adapter.
        recovery_lora_alpha: The adapter is scaled by alpha / rank.
        recovery_lora_dropout: Dropout before the adapter. None by default: one pass over the text does not overfit.
        recovery_lora_targets: Linear modules to adapt, such as `q_proj`; those of all layers when empty.
        recovery_lora_start: `zero`, or `closed-form`: the low-rank repair of the cut projections on the recovery text.
        recovery_compensation: `ridge` solves the projections that read what was cut anew on the recovery text before
            the training, as `compensation` does on the calibration text; `none` by default.
        recovery_compensation_samples: Windows of the recovery text that it solves on, at most. 256, four times the
            default calibration: more text of more kinds is what it gains by.
        recovery_learning_rate: Peak learning rate; None takes 1e-3 for an adapter and 1e-4 for anything else.
        recovery_batch_size: Windows in a step, over all processes; `batch_size` says how many run at once.
        recovery_epochs: How often the text is gone through.
        recovery_save_steps: Steps between evaluations on what is held out, each with a checkpoint to resume from.
        recovery_patience: Evaluations without a better one before training stops early.
        recovery_checkpointing: Compute layers a second time in the backward pass, to save memory.
        recovery_sampling_temperature: Temperature of `self` text for recovery.
        recovery_sampling_filter: Share of it that is dropped because the model finds it least likely itself.
        recovery_cache: Folder in which `self` text and the teacher's top k are kept for other runs.
        recovery_keep_adapter: Also save the adapter, with this Hub id of the pruned model as its base; `auto` takes
            the id that the pruned model was opened by.
        evaluate: Measure perplexity, KL divergence and agreement with the base (and `tasks`).
        eval_text: Text sources to measure on; by default Python's own reference topics, which every machine has.
        eval_samples: Windows of each evaluation text.
        eval_length: Tokens in each.
        tasks: lm-eval tasks or groups of them, `thesis-zero-shot` (OpenBookQA, WinoGrande and HellaSwag) and
            `thesis-few-shot` (MMLU with 5 examples).
        include_path: Folder with lm-eval task files; only its tasks are then known.
        num_fewshot: Examples in the prompt; None takes each task's own number.
        sample_new_tokens: Tokens that both models write behind each of a few fixed prompts, for the card; 0 for none.
        result_cache: Keep what was measured of a model on disk (beside the scores), and take it from there when model,
            data, settings, versions and hardware are the same: an interrupted run goes on, and a base is measured
            once.
        batch_size: Windows or requests in a batch.
        benchmark: Time base and result in turn, and measure loading, memory and operations (docs/benchmark.md).
        benchmark_prompt_length: Tokens in the prompts that are timed, one number or several; decoding goes on from
            there.
        benchmark_batch_size: Sequences at once, one number or several.
        benchmark_new_tokens: Tokens decoded behind each prompt, in each of a model's two turns a round.
        benchmark_rounds: Rounds that count. With fewer than nine no difference can be told from chance.
        base_model: What cards shall call the base, such as its Hub id, when it was read from a folder.
        seed: Seed of everything that is drawn.
        dtype: Compute dtype; `auto` is bfloat16 where the hardware multiplies it. The files keep their own.
        device: Where to compute; `auto` is CUDA where there is one.

    Raises:
        RequestError: An unknown name or a value that is not allowed; the message says which are.
    """

    CONFIG_NAME = CONFIG_FILE
    FULL_CONFIGURATION_FILE = CONFIG_FILE

    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "num_hidden_layers": None,
        "num_key_value_heads": None,
        "num_attention_heads": None,
        "intermediate_size": None,
        "target": None,
        "prune": None,
        "intermediate_multiple": None,
        "for_runtime": None,
        "keep_first_layers": None,
        "keep_last_layers": None,
        "merge_key_value_heads": False,
        "allow_class_change": False,
        "importance": "fisher",
        "importance_group_size": None,
        "importance_samples": 48,
        "score_cache": True,
        "layer_importance": "block-influence",
        "layer_selection": "one-shot",
        "compensation": "ridge",
        "calibration": ("self",),
        "calibration_samples": 64,
        "calibration_length": 256,
        "recovery": "none",
        "recovery_data": ("self",),
        "recovery_tokens": 200_000,
        "recovery_length": 256,
        "recovery_labels": "text",
        "recovery_teacher": None,
        "recovery_temperature": 1.0,
        "recovery_top_k": None,
        "recovery_train": "lora",
        "recovery_lora_rank": 32,
        "recovery_lora_alpha": 64,
        "recovery_lora_dropout": 0.0,
        "recovery_lora_targets": (),
        "recovery_lora_start": "zero",
        "recovery_compensation": "none",
        "recovery_compensation_samples": 256,
        "recovery_learning_rate": None,
        "recovery_batch_size": 8,
        "recovery_epochs": 1,
        "recovery_save_steps": 25,
        "recovery_patience": 5,
        "recovery_checkpointing": False,
        "recovery_sampling_temperature": 1.0,
        "recovery_sampling_filter": 0.1,
        "recovery_cache": None,
        "recovery_keep_adapter": None,
        "evaluate": True,
        "eval_text": None,
        "eval_samples": 32,
        "eval_length": 512,
        "tasks": (),
        "include_path": None,
        "num_fewshot": None,
        "sample_new_tokens": 48,
        "result_cache": True,
        "batch_size": 4,
        "benchmark": True,
        "benchmark_prompt_length": (64,),
        "benchmark_batch_size": (1,),
        "benchmark_new_tokens": 6,
        "benchmark_rounds": 13,
        "base_model": None,
        "seed": 0,
        "dtype": "auto",
        "device": "auto",
    }

    def __init__(self, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in self.DEFAULTS:
                raise RequestError(unknown_name("config key", name, self.DEFAULTS))
        for name, default in self.DEFAULTS.items():
            value = kwargs.get(name, default)
            if name in LISTS and value is not None:
                items = value.split(",") if isinstance(value, str) else value
                if not isinstance(items, (list, tuple)):
                    raise RequestError(f"{name} must be a list of names, not {value!r}")
                value = tuple(item.strip() if isinstance(item, str) else item for item in items)
            setattr(self, name, whole_numbers(name, value) if name in NUMBERS else value)
        check_values(self, self.DEFAULTS)

    @property
    def recovery_settings(self) -> RecoverySettings:
        """The part of the config that recovery reads."""
        return RecoverySettings(
            data=tuple(TextSource(text) for text in self.recovery_data),
            tokens=self.recovery_tokens,
            length=self.recovery_length,
            sampling_temperature=self.recovery_sampling_temperature,
            sampling_filter=self.recovery_sampling_filter,
            cache=Path(self.recovery_cache).expanduser() if self.recovery_cache else None,
            loss=self.recovery,
            trained=self.recovery_train,
            lora=LoraSettings(
                self.recovery_lora_rank,
                self.recovery_lora_alpha,
                self.recovery_lora_dropout,
                self.recovery_lora_targets,
            ),
            lora_start=self.recovery_lora_start,
            compensation=self.recovery_compensation,
            compensation_samples=self.recovery_compensation_samples,
            learning_rate=self.recovery_learning_rate,
            batch_size=self.recovery_batch_size,
            micro_batch_size=self.batch_size,
            epochs=self.recovery_epochs,
            temperature=self.recovery_temperature,
            top_k=self.recovery_top_k,
            labels=self.recovery_labels,
            save_steps=self.recovery_save_steps,
            patience=self.recovery_patience,
            checkpointing=self.recovery_checkpointing,
            seed=self.seed,
        )

    @property
    def request(self) -> ShapeRequest:
        """The part of the config that planning reads."""
        shape = {key: getattr(self, key) for key in DIMENSIONS if getattr(self, key) is not None}
        return ShapeRequest(
            shape,
            self.target,
            self.intermediate_multiple,
            self.keep_first_layers,
            self.keep_last_layers,
            self.merge_key_value_heads,
            self.allow_class_change,
            self.prune,
            self.for_runtime,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain values: its own names only."""
        values = {name: getattr(self, name) for name in self.DEFAULTS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the values that are not the defaults."""
        defaults = IShrinkConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != defaults[name]}

    def replace(self, **changes: Any) -> IShrinkConfig:
        """Return a copy with some values changed, validated again."""
        return IShrinkConfig(**{**self.to_dict(), **changes})

    def portable(self) -> IShrinkConfig:
        """Return a copy in which local files go by their own names: what is published holds no path of a machine."""

        def name_of(text: str) -> str:
            return Path(text).name if TextSource(text).path is not None else text

        changes: dict[str, Any] = {"calibration": [name_of(text) for text in self.calibration]}
        changes["recovery_data"] = [name_of(text) for text in self.recovery_data]
        if self.recovery_teacher is not None and Path(self.recovery_teacher).expanduser().exists():
            changes["recovery_teacher"] = Path(self.recovery_teacher).expanduser().resolve().name
        if self.recovery_cache is not None:
            changes["recovery_cache"] = Path(self.recovery_cache).expanduser().resolve().name
        if self.eval_text is not None:
            changes["eval_text"] = [name_of(text) for text in self.eval_text]
        if self.include_path is not None:
            changes["include_path"] = Path(self.include_path).resolve().name
        return self.replace(**changes)

    def command(self, model: str, output: str, *extra: str, verb: str = "shrink") -> str:
        """Return the command line that asks for the same.

        Args:
            model: The model's name.
            output: The output folder's name.
            extra: More arguments, such as `"--gguf-file", "model.gguf"`.
            verb: The verb.
        """
        words = ["ishrink", verb, "--model", model, *extra, "--output", output]
        for name, value in self.to_diff_dict().items():
            flag = "--" + name.replace("_", "-")
            if value is False:
                words.append("--no-" + name.replace("_", "-"))
            elif value is True:
                words.append(flag)
            elif isinstance(value, list):
                words += [flag, ",".join(map(str, value))]
            else:
                words += [flag, str(value)]
        return shlex.join(words)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> IShrinkConfig:
        """Build a config from plain values; unknown names are errors."""
        return cls(**{**config_dict, **kwargs})

    @classmethod
    def from_yaml(cls, path: str | Path) -> IShrinkConfig:
        """Read a recipe.

        Args:
            path: A YAML file; its key `model`, which says what the recipe is for, is left out.

        Raises:
            RequestError: It is missing or not a recipe, or a key is unknown.
        """
        return cls(**{key: value for key, value in read_recipe(path).items() if key != "model"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> IShrinkConfig:
        """Read the config of a result, from its folder or from the Hub.

        Args:
            pretrained_model_name_or_path: Output folder or Hub id.
            **kwargs: What `huggingface_hub.hf_hub_download` takes, such as `revision` and `token`.

        Raises:
            SourceError: There is none.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        if folder.is_dir():
            return cls(**read_json(folder / CONFIG_FILE))
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(str(pretrained_model_name_or_path), CONFIG_FILE, **kwargs)
        except Exception as error:  # the client raises many types for a file that cannot be had
            reason = " ".join(str(error).split())[:200]
            raise SourceError(f"no {CONFIG_FILE} at {pretrained_model_name_or_path!r} ({reason})") from None
        return cls(**read_json(Path(path)))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `ishrink_config.json` into a folder.

        Args:
            save_directory: The folder; it is made when it does not exist.
            push_to_hub: Push it as well.
            **kwargs: What `push_to_hub` takes; `repo_id` is by default the folder's name.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_FILE, self.to_dict())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.to_diff_dict().items())
        return f"IShrinkConfig({inner})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IShrinkConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe as plain values.

    Raises:
        RequestError: It is missing or not a mapping of names to values.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise RequestError(f"recipe {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RequestError(f"recipe {path} is not a list of 'name: value' lines")
    return values
