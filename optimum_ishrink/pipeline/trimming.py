"""Cutting the vocabulary and tying the head, before everything else.

What is scored and repaired afterwards reads the new tokens, and computes with the head of the result.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..architectures.composite import with_text_values
from ..architectures.config_edit import changed_keys, with_changes, without_code
from ..architectures.description import ROWS, TIE
from ..checkpoint.generation import GENERATION_CONFIG, mend_generation_config
from ..checkpoint.source import Source, temporary_folder
from ..checkpoint.tensors import INDEX_NAME
from ..checkpoint.tokenizer_files import PROCESSOR_FILES
from ..checkpoint.writing import LICENSE_PATTERNS, carry_files, write_config
from ..configuration import IShrinkConfig
from ..core.json_files import read_json, write_json
from ..core.progress import byte_bar, note
from ..edge.pre_tokenizers import pre_tokenizer_name
from ..errors import SourceError
from ..planning.row_choices import RowChoices
from ..report.plan import Plan
from ..report.tied_head import HeadRecord
from ..report.vocabulary import VocabularyRecord
from ..surgery.embeddings import outgoing_embeddings, write_embeddings
from ..text.calibration import Calibration
from ..text.sources import parse_sources
from ..vocabulary.renumber import config_ids, renumber_ids
from ..vocabulary.rewrite import write_trimmed_tokenizer
from ..vocabulary.stage import Vocabulary
from ..vocabulary.tokenizer_file import TOKENIZER_FILE
from .known_rows import cost_cache, row_choices
from .row_request import may_change_rows


def find_vocabulary(
    source: Source, config: IShrinkConfig, known: Vocabulary | None = None
) -> tuple[Vocabulary, RowChoices] | None:
    """Return the vocabulary of a model and the sizes that it can have; None where the request does not change it.

    Args:
        source: The model.
        config: The request.
        known: The vocabulary, where another run over the same model and texts has counted its tokens.

    Raises:
        ShapeError: An option says which tokens stay, and none is removed.
        RequestError: A language has no word frequencies.
        SourceError: The vocabulary is to be cut, and cannot be.
        DataError: A text cannot be read.
    """
    if not may_change_rows(source.binding, config):
        return None
    vocabulary = known or Vocabulary(source, config, parse_sources(config.calibration))
    cache = cost_cache(source.folder, source.binding, config)
    costs = cache.read()
    if costs is None:
        try:
            costs = vocabulary.costs()
        except SourceError as error:
            if config.vocab_size is not None or (config.prune and ROWS in config.prune):
                raise
            note(f"the vocabulary stays as it is: {error}")
            return None
        cache.write(costs)
    return vocabulary, row_choices(costs, source.binding, config)


class Trim:
    """A source before its layers are cut: with some rows of its vocabulary, its head tied to the embedding, or both.

    Its tokenizer and configs are written at once, its weights when they are needed.

    Args:
        source: The source.
        rows: The rows that stay, ascending; None for all.
        head: The head that is tied to the embedding; None leaves it as it is.

    Raises:
        SourceError: The tokenizer cannot be cut.
        ShapeError: A config needs a token that is removed.
    """

    def __init__(self, source: Source, rows: Sequence[int] | None, head: HeadRecord | None = None) -> None:
        self.base = source
        self.rows = None if rows is None else tuple(rows)
        self.head = head
        self.folder, self._owner = temporary_folder()
        self.notes = self.write_files(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, of the tokenizers library."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / TOKENIZER_FILE))

    @cached_property
    def source(self) -> Source:
        """The whole checkpoint; its weights are written when this is first read."""
        self.write_weights(self.folder)
        return self.configs

    @cached_property
    def configs(self) -> Source:
        """The checkpoint without its weights."""
        return replace(self.base, folder=self.folder, _owner=self._owner)

    def write_files(self, folder: Path) -> list[str]:
        """Write everything but the weights: tokenizer, configs, licence.

        Args:
            folder: An existing folder.

        Returns:
            A line for each thing that is left out.

        Raises:
            SourceError: The tokenizer cannot be cut.
            ShapeError: A config needs a token that is removed.
        """
        source, rows = self.base, self.rows
        edited, lost = edited_config(source, rows, self.head)
        if rows is None:
            carry_files(source.folder, folder)
            write_config(edited, folder)
            return lost
        notes = write_trimmed_tokenizer(source.folder, folder, rows)
        write_config(edited, folder)
        generation, total = source.folder / GENERATION_CONFIG, source.binding.shape[ROWS]
        if generation.is_file():
            values, more = renumber_ids(mend_generation_config(generation)[0], rows, total)
            write_json(folder / GENERATION_CONFIG, values)
            lost += more
        carry_files(source.folder, folder, PROCESSOR_FILES)
        for name in PROCESSOR_FILES:
            if (folder / name).is_file() and config_ids(read_json(folder / name)):
                values, more = renumber_ids(read_json(folder / name), rows, total)
                write_json(folder / name, values)
                lost += more
        carry_files(source.folder, folder, LICENSE_PATTERNS)
        return notes + lost

    def copy_files(self, folder: Path) -> None:
        """Copy what `write_files` has written: all but the weights.

        Args:
            folder: An existing folder.
        """
        shutil.copytree(
            self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", INDEX_NAME)
        )

    def write_weights(self, folder: Path) -> None:
        """Write the weights beside the config, tensor by tensor, and verify them.

        Args:
            folder: A folder with the new config.json.

        Raises:
            OutputError: There is no space left, or no permission to write.
            VerificationError: The result is not what was cut.
        """
        source = self.base
        outgoing = outgoing_embeddings(source.tensors, source.binding, self.rows, self.head)
        what = "cutting the vocabulary" if self.rows is not None else "tying the head"
        with byte_bar(what, sum(tensor.nbytes for tensor in outgoing)) as written:
            write_embeddings(source.tensors, source.binding, folder, self.rows, self.head, progress=written)


def edited_config(
    source: Source, rows: Sequence[int] | None, head: HeadRecord | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the contents of config.json with some rows of the vocabulary or a tied head, and what was left out.

    Args:
        source: The source.
        rows: The rows that stay, ascending; None for all.
        head: The head that is tied to the embedding; None leaves it as it is.

    Raises:
        ShapeError: The config needs a token that is removed.
    """
    edited: dict[str, Any] = without_code(source.raw_config)
    lost: list[str] = []
    if rows is not None:
        edited, lost = renumber_ids(edited, rows, source.binding.shape[ROWS])
        edited = with_text_values(edited, source.binding.config_changes({ROWS: len(rows)}))
    if head is not None:
        edited[TIE] = True
    return edited, lost


def choose_rows(
    vocabulary: Vocabulary, size: int, calibration: Calibration, head: HeadRecord | None = None
) -> tuple[Trim, VocabularyRecord]:
    """Choose the tokens that stay, and write the tokenizer without the others.

    Args:
        vocabulary: What is known of the vocabulary.
        size: How many rows stay.
        calibration: The calibration text in the tokens of the whole vocabulary.
        head: The head that is tied to the embedding; None leaves it as it is.

    Raises:
        ShapeError: A config needs a token that is removed.
    """
    order = vocabulary.order(calibration.sampled)
    rows = order.rows(size)
    trim = Trim(vocabulary.source, rows, head)
    record = vocabulary.record(order, rows, trim.tokenizer, calibration.sampled_documents, trim.notes)
    record = replace(record, llama_cpp_pre=pre_tokenizer_name(vocabulary.opened))
    for line in (*vocabulary.warnings(record), *record.notes):
        note(line)
    return trim, record


def of_whole(plan: Plan, source: Source, rows: VocabularyRecord | None, head: HeadRecord | None) -> Plan:
    """Return a plan that was made on a trimmed source as one of the whole model.

    Args:
        plan: The plan.
        source: The whole model.
        rows: Which rows stay; None where all do.
        head: How far the head is from the embedding; None where that is of no interest.
    """
    if rows is None and head is None:
        return plan
    tied = head if head is not None and head.tied else None
    trimmed, _ = edited_config(source, None if rows is None else rows.rows, tied)
    edited = with_changes(trimmed, plan.config_changes)
    return replace(
        plan,
        shape=dict(source.binding.shape),
        num_parameters=source.binding.num_parameters(),
        config_changes=changed_keys(source.raw_config, edited),
        vocabulary=rows,
        tied_head=head,
    )
