"""IShrinkConfig: every option of a run, checked when it is made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .core.json_files import read_json, write_json
from .errors import PublishError, RequestError, SourceError, one_line
from .evaluation.options import EvaluationOptions
from .importance.options import ImportanceOptions
from .options.option import Place, argument_lines, options_of
from .planning.options import ShapeOptions
from .planning.schedule_names import RECOVER, parse_schedule
from .planning.schedule_options import ScheduleOptions
from .recovery.options import RecoveryOptions
from .recovery.teachers import without_folders
from .report.files import CONFIG_FILE
from .sparsity.options import SparsityOptions
from .surgery.options import CompensationOptions
from .vocabulary.options import VocabularyOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class IShrinkConfig(
    ShapeOptions,
    ScheduleOptions,
    VocabularyOptions,
    ImportanceOptions,
    CompensationOptions,
    SparsityOptions,
    RecoveryOptions,
    EvaluationOptions,
):
    """What to shrink, how to choose, how to recover, and what to measure.

    It is saved as `ishrink_config.json` with the result. Every name is also a command-line flag, with dashes for
    underscores, and a key of a YAML recipe; `docs/reference/configuration.md` lists them with types and defaults.
    Unknown names are errors. It has the methods of an Optimum config: `from_pretrained`, `save_pretrained`,
    `push_to_hub`, `to_dict`, `to_json_string`.

    Raises:
        RequestError: A name is unknown or a value is not allowed; the message says what is.
    """

    CONFIG_NAME: ClassVar[str] = CONFIG_FILE

    def check_together(self) -> None:
        """Check that experts are merged by what a text says of them, and that weights are rounded once.

        Raises:
            RequestError: The criterion for experts reads none; weights are to be trained after they are rounded;
                weights are to be rounded and to become zero; or the schedule and the recovery do not go together.
        """
        if self.compensation_for is not None and self.recovers:
            raise RequestError(
                f"compensation_for={self.compensation_for!r} rounds weights that recovery then changes; leave it out "
                f"and set recovery_for={self.compensation_for!r}, which rounds them and trains for it"
            )
        if self.sparsity is not None and (kept := self.compensation_for or self.recovery_for) is not None:
            raise RequestError(
                f"sparsity={self.sparsity!r} sets weights to zero, and rounding them for {kept} changes the others by "
                "inputs that are not theirs any more; leave out compensation_for and recovery_for, or sparsity"
            )
        self._check_schedule()
        if not self.merge_experts:
            return
        from .importance.criterion import EXPERT_CRITERIA

        if EXPERT_CRITERIA[self.expert_importance].needs != "routing":
            able = " or ".join(name for name in EXPERT_CRITERIA if EXPERT_CRITERIA[name].needs == "routing")
            raise RequestError(
                "merge_experts weights experts by how often a text is routed to them, and "
                f"expert_importance={self.expert_importance!r} reads none; it can be {able}"
            )

    def _check_schedule(self) -> None:
        if self.schedule is None:
            return
        stages = parse_schedule(self.schedule)
        if self.recovers != (RECOVER in stages):
            raise RequestError(
                f"recovery={self.recovery!r} trains in the stages of the schedule that are called {RECOVER}, and "
                f"{self.schedule!r} has none; add one"
                if self.recovers
                else f"schedule={self.schedule!r} recovers, and recovery='none' trains nothing; name a loss, such as "
                "recovery='kl'"
            )
        if self.merge_key_value_heads or self.merge_experts:
            raise RequestError(
                "a schedule says by one plan what is left of the base, and merged heads or experts are none of its; "
                "leave out merge_key_value_heads and merge_experts, or schedule"
            )
        if self.recovery_keep_adapter is not None:
            raise RequestError(
                "a saved adapter belongs on a pruned model that has a name, and those of a schedule have none; leave "
                "out recovery_keep_adapter or schedule"
            )
        if self.recovery_for is not None and stages[-1] != RECOVER:
            raise RequestError(
                f"recovery_for={self.recovery_for!r} trains the result for its export, and the schedule cuts "
                f"after its last {RECOVER}; end it with {RECOVER}"
            )

    def cut_alone(self, **changes: Any) -> IShrinkConfig:
        """Return the request of one cut of a larger run: it has no target, and neither recovers nor measures.

        Args:
            **changes: Further values, such as the shape.
        """
        alone: dict[str, Any] = {"target": None, "profile": None, "prune": None, "recovery": "none"}
        return self.replace(**alone, evaluate=False, benchmark=False, **changes)

    def portable(self) -> IShrinkConfig:
        """Return a copy in which local files have no folders: what is published holds no path of a machine."""
        changes = {
            name: _portable(getattr(self, name), entry.spec.path)
            for name, entry in options_of(type(self)).items()
            if entry.spec.path is not None
        }
        return self.replace(**changes)

    def command(self, model: str, output: str, *extra: str, verb: str = "shrink") -> str:
        """Return the command line that makes the same request.

        Args:
            model: The model's name.
            output: The output folder's name.
            extra: More arguments, such as `"--gguf-file", "model.gguf"`.
            verb: The verb.
        """
        entries = options_of(type(self))
        words = ["ishrink", verb, "--model", model, *extra, "--output", output]
        for name, value in self.to_diff_dict().items():
            words.append(entries[name].flag)
            if isinstance(value, list):
                words.append(",".join(map(str, value)))
            elif not isinstance(value, bool):
                words.append(str(value))
        return shlex.join(words)

    def to_json_string(self) -> str:
        """Return the config as the text of `ishrink_config.json`."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> IShrinkConfig:
        """Build a config from plain values.

        Args:
            config_dict: The values by name.
            **kwargs: Values that replace them.

        Raises:
            RequestError: A name is unknown or a value is not allowed.
        """
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
            RequestError: It has a name that is unknown, or a value that is not allowed.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        if folder.is_dir():
            return cls(**read_json(folder / CONFIG_FILE))
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(str(pretrained_model_name_or_path), CONFIG_FILE, **kwargs)
        except Exception as error:  # the client raises many types for a file that is not there
            reason = one_line(error)
            raise SourceError(f"no {CONFIG_FILE} at {pretrained_model_name_or_path!r} ({reason})") from None
        return cls(**read_json(Path(path)))

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `ishrink_config.json` into a folder.

        Args:
            save_directory: The folder; it is made when it does not exist.
            push_to_hub: Push it as well.
            **kwargs: What `push_to_hub` takes; `repo_id` is by default the folder's name.
        """
        folder = Path(save_directory).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG_FILE, self.to_dict())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload ishrink_config.json",
    ) -> str:
        """Upload the config alone; `ShrinkResult.push_to_hub` uploads a whole result.

        Args:
            repo_id: `user/name`; the repository is made when it does not exist.
            private: Whether a new repository is private.
            token: Hub token; the one that is logged in when None.
            revision: Branch to commit to.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.

        Raises:
            PublishError: The upload failed.
        """
        from huggingface_hub import HfApi

        from .hub.failures import is_publishing_failure, reason

        api = HfApi(token=token)
        try:
            full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(full_id, branch=revision, exist_ok=True)
            done = api.upload_file(
                path_or_fileobj=self.to_json_string().encode(),
                path_in_repo=CONFIG_FILE,
                repo_id=full_id,
                revision=revision,
                commit_message=commit_message,
            )
        except Exception as error:
            if not is_publishing_failure(error):
                raise
            secrets = [token] if isinstance(token, str) else []
            raise PublishError(f"the push of {CONFIG_FILE} to {repo_id} failed ({reason(error, secrets)})") from None
        return str(done.commit_url)


IShrinkConfig.__doc__ = (IShrinkConfig.__doc__ or "").replace(
    "    Raises:", f"    Args:\n{argument_lines(IShrinkConfig)}\n\n    Raises:"
)


def _portable(value: Any, place: Place) -> Any:
    """Return a value without the folders of this machine; Hub ids and other names stay.

    Args:
        value: The option's value.
        place: What kind of local path it can be.
    """
    if isinstance(value, tuple):
        return [_portable(item, place) for item in value]
    if value is None:
        return None
    if place == "teachers":
        return without_folders(value)
    path = Path(value).expanduser()
    if place == "text":
        return path.name if value.endswith((".txt", ".jsonl")) else value
    return path.resolve().name if place == "folder" or path.exists() else value


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe as plain values.

    Raises:
        RequestError: It is missing or not a mapping of names to values.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which YAML takes the last, and reads 2:4 as text, which YAML does not:
        to YAML 1.1 it is 124, two minutes and four seconds.
        """

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise RequestError(f"recipe {path} has {twice[0]!r} twice; leave out one")
            return super().construct_mapping(node, deep)

        def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
            text = self.construct_scalar(node)
            return text if ":" in str(text) else super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader)
    except OSError:
        raise RequestError(f"recipe {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RequestError(f"recipe {path} is not a list of 'name: value' lines")
    return values
