"""Every place where something of another's comes in: files, libraries, the machine.

A door is found by what is called there. ``docs/architecture.md`` shows the same doors with what can come through; the
tests that are named here go through that for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Door:
    """What is called at a door, and where.

    Attributes:
        calls: Of the dotted names of what is called, those that let something in or out.
        files: Where they are called.
        tests: File of the tests that go through what can come.
    """

    calls: re.Pattern[str]
    files: frozenset[str]
    tests: str

    def lets_in(self, name: str) -> bool:
        """Whether a call of this name is one of the door's."""
        return self.calls.fullmatch(name) is not None


def door(calls: str, *files: str, tests: str) -> Door:
    return Door(re.compile(calls), frozenset(files), tests)


DOORS: Mapping[str, Door] = {
    "text": door(
        r".*\.(read_text|read_bytes)",
        "core/data/alternatives.py",  # ours, shipped
        "core/model/loading.py",  # /proc
        "core/model/machine.py",  # /proc, /sys
        "core/store/artifacts.py",
        "core/store/texts.py",
        "core/training/ranks.py",  # bytes of a compiled part, between ranks
        "tuning/cluster/reading.py",
        "tuning/cluster/spreading.py",  # of our own shipping
        "tuning/environment_checks.py",  # /sys
        "tuning/likeness.py",  # our code
        "tuning/shared_folder.py",  # written by ourselves, a moment before
        tests="doors_tests/test_texts.py",
    ),
    "JSON": door(
        r"json\.loads?",
        "core/data/alternatives.py",  # ours, shipped
        "core/model/source.py",
        "core/store/artifacts.py",
        "core/store/texts.py",
        "core/store/upkeep.py",
        "tuning/cluster/there.py",  # of its own making
        "tuning/files.py",  # of its own making
        "tuning/records.py",
        "tuning/report/figures.py",  # of plotly's making
        tests="doors_tests/test_texts.py",
    ),
    "YAML": door(
        r"(strict_)?yaml\.(safe_load|load)",
        "tuning/cli/application.py",
        "tuning/cluster/reading.py",
        "tuning/files.py",
        "tuning/resources.py",
        tests="doors_tests/test_yaml_files.py",
    ),
    "data sets": door(
        r".*\.(load_dataset|read_table)|.*\.read_(magic|array)",
        "core/data/sources.py",
        "core/data/token_files.py",
        tests="doors_tests/test_data_files.py",
    ),
    "tokenizers": door(
        r"(.*\.)?tokenizer|.*\.apply_chat_template",
        "core/data/prompts.py",
        "core/model/loading.py",  # of a text classifier
        tests="doors_tests/test_tokenizers.py",
    ),
    "models": door(
        r".*\.(from_pretrained|from_config)",
        "core/model/gguf.py",
        "core/model/loading.py",
        "core/model/tokenizer.py",
        "core/training/adapter.py",
        tests="doors_tests/test_model_folders.py",
    ),
    "packages": door(
        r"subprocess\.run|.*ZipFile",
        "core/model/machine.py",  # nvidia-smi
        "core/model/packaged.py",
        "tuning/cluster/control.py",  # Ray's command line
        "tuning/cluster/spot.py",  # the same
        "tuning/environment_checks.py",  # tools of the system
        tests="doors_tests/test_model_folders.py",
    ),
    "cache": door(
        r"safe_open|load_file|save_file",
        "core/store/artifacts.py",
        "core/training/adapter.py",
        "core/training/lora_format.py",
        "core/training/resuming.py",  # of our own making, verified by its hash
        tests="doors_tests/test_disks.py",
    ),
    "locks": door(r".*flock|FileLock", "core/store/locks.py", tests="doors_tests/test_disks.py"),
    "disk": door(  # whoever writes, it ends here
        r"refusal", "tuning/cli/__init__.py", tests="doors_tests/test_disks.py"
    ),
    "ledger": door(
        r"sqlite3\.connect|optuna\.(load_study|create_study)|.*RDBStorage",
        "tuning/copies.py",
        "tuning/database.py",
        "tuning/ledger.py",
        "tuning/records.py",
        tests="tuning_tests/test_damaged_runs.py",
    ),
    "storage": door(
        r".*FileSystem\.from_uri", "tuning/storage/store.py", tests="doors_tests/test_storages.py"
    ),
    "Ray": door(
        r"ray\.init", "tuning/cluster/spot.py", "tuning/cluster/spreading.py", "tuning/plan.py",
        tests="doors_tests/test_starting_ray.py",
    ),
    "terminal": door(
        r"Console|print", "tuning/cli/application.py", "tuning/dry_run.py", "tuning/terminal.py",
        tests="doors_tests/test_terminal.py",
    ),
    "another's code": door(
        r"foreign",
        "core/data/files.py",
        "core/data/prompts.py",
        "core/data/sources.py",
        "core/evaluation.py",
        "core/model/loading.py",
        "core/training/adapter.py",
        "core/training/lora_format.py",
        "tuning/cluster/launcher_file.py",
        "tuning/ledger.py",
        "tuning/plan.py",
        tests="doors_tests/test_foreign.py",
    ),
}  # fmt: skip
