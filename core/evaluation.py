"""Evaluate a finished model: load it and its adapter, read the rows, run suites, gather the result."""

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from core.config import EngineConfig, ModelConfig, SourceConfig
from core.data.sources import is_at_hand, read_rows
from core.data.taught import wording_notice
from core.errors import DataError, ModelError, UserError, foreign, in_a_line
from core.model.layers import n_positions, vocabulary_size
from core.model.loading import LoadedModel, load_model
from core.model.source import locate
from core.store.artifacts import content_key
from core.store.durable import finite
from core.suites import (
    SUITES,
    AuditOptions,
    EvaluationData,
    EvaluationRows,
    Pace,
    Subject,
    SuiteInput,
)
from core.training.adapter import load_adapter
from core.training.full_parameters import is_model_folder

_SHIPPED: Mapping[str, str] = {
    "forget": "embedded:forget",
    "retain": "embedded:retain",
    "holdout": "embedded:approximate",
    "general": "embedded:general",
}
_PACKAGES = ("unlearn-tune", "torch", "transformers", "peft")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What is evaluated, and on what.

    Attributes:
        model: Source of the model, as in :class:`core.config.ModelConfig`.
        suites: Names of suites, in the order in which they run.
        tokenizer: Source of the tokenizer, for models without one; each model's own if absent.
        adapter: Folder of a stock PEFT adapter on that model.
        data: Rows by role; the shipped ones if absent, see :func:`default_data`.
        retain_only: Source of a model that never saw the forget set.
        initial: Source of the model before unlearning; with an adapter the model itself if absent.
        limit: First rows of each role that are used; all if absent.
        batch_size: Rows of one forward pass.
        engine: Precision and device.
        options: What can be chosen about audits.
    """

    model: str
    suites: Sequence[str]
    tokenizer: str | None = None
    adapter: Path | None = None
    data: EvaluationData | None = None
    retain_only: str | None = None
    initial: str | None = None
    limit: int | None = None
    batch_size: int = 16
    engine: EngineConfig = field(default_factory=EngineConfig)
    options: AuditOptions = field(default_factory=AuditOptions)


def evaluate(request: EvaluationRequest, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run suites on a model.

    Args:
        request: What is evaluated.
        tell: Takes a line when a suite begins, and every few seconds while it works.

    Returns:
        What goes into the file: ``model``, ``adapter``, ``retain_only``, ``initial``, ``suites`` (name to
        ``metrics``, ``notes`` and ``samples``), ``data`` (role to source), ``data_counts`` (role to what was read
        and left out), ``identity`` and ``versions``.
        JSON can hold it: numbers that are not finite are the strings ``nan``, ``inf`` and ``-inf``.

    Raises:
        UserError: With what to do, if a suite is unknown, or a model, an adapter, rows, a field or the
            retain-only model that a suite needs is not there.
    """
    names = refuse_unknown_suites(request.suites)
    data = default_data(names) if request.data is None else request.data
    refuse_missing_roles(names, data)
    refuse_missing_models(request, names)
    refuse_unreadable_rows(data)
    model = load_model(_named(request.model, request), request.engine, field="MODEL")
    pace = Pace(tell)
    subject = _subject(model, request, pace)
    rows = EvaluationRows(
        data,
        model.tokenizer,
        vocabulary=vocabulary_size(model.network),
        positions=n_positions(model.network),
        limit=request.limit,
    )
    initial = request.initial or (request.model if request.adapter is not None else None)
    load_retain_only = _loader("--retain-only", request.retain_only, request, model, pace)
    given = SuiteInput(
        subject,
        rows,
        options=request.options,
        limit=request.limit,
        retain_only=None if load_retain_only is None else load_retain_only(),
        load_initial=_loader("--initial", initial, request, model, pace),
    )
    found = {}
    notice: str | None = None
    for name in names:
        tell(f"suite {name}")
        pace.suite = name
        findings = SUITES[name].run(given)
        if notice is None:
            notice = _wording_notice(request, data, rows, model)
            if notice is not None:
                tell(f"warning: {notice}")
        found[name] = {
            "metrics": dict(findings.metrics),
            "notes": list(findings.notes),
            "samples": findings.samples,
        }
    adapter = None if request.adapter is None else str(request.adapter)
    result = {
        "model": request.model,
        "adapter": adapter,
        "retain_only": request.retain_only,
        "initial": initial,
        "suites": found,
        "data": {role: data.sources[role].source for role in rows.identity},
        "identity": {
            "model": model.identity,
            "adapter": None if request.adapter is None else _adapter_identity(request.adapter),
            "rows": rows.identity,
        },
        "data_counts": {role: vars(counts) for role, counts in rows.counts.items()},
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }
    return dict(finite(result))


def _wording_notice(
    request: EvaluationRequest, data: EvaluationData, rows: EvaluationRows, model: LoadedModel
) -> str | None:
    return wording_notice(
        data,
        model.tokenizer,
        rows.read,
        source=request.model,
        location=locate(ModelConfig(source=request.model))[0],
    )


def compute_threads(n: int | None) -> None:
    """Let torch compute on this many CPU threads; its own choice if absent."""
    if n is not None:
        torch.set_num_threads(n)


def refuse_unknown_suites(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        UserError: If there is none, or one is unknown; with the nearest known one.
    """
    listed = ", ".join(SUITES)
    if not names:
        raise UserError(f"--suite: name at least one of {listed}")
    for name in names:
        if name not in SUITES:
            near = get_close_matches(name, SUITES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"--suite: no suite {name!r}; {hint}known: {listed}")
    return tuple(dict.fromkeys(names))


def refuse_unreadable_rows(data: EvaluationData) -> None:
    """Read all that needs no download, before a model is loaded.

    Raises:
        DataError: If a source cannot be read, or a row of it lacks a field.
    """
    for role, source in data.sources.items():
        if is_at_hand(source):
            read_rows(source, role=role)


def default_data(names: Sequence[str]) -> EvaluationData:
    """The shipped texts; where a suite needs questions, the shipped authors instead, for all suites.

    One role has one source for all suites of a call, so that their numbers belong together.
    """
    sources = dict(_SHIPPED)
    for name in names:
        sources |= SUITES[name].defaults
    return EvaluationData(**{role: SourceConfig(source=source) for role, source in sources.items()})


def refuse_missing_roles(names: Sequence[str], data: EvaluationData) -> None:
    """Refuse suites whose rows are not there.

    Raises:
        DataError: If a suite needs a role that has no source.
    """
    given = ", ".join(data.sources) or "none"
    for name in names:
        suite = SUITES[name]
        missing = [role for role in suite.roles if role not in data.sources]
        if missing:
            raise DataError(
                f"--suite {name}: needs the role {missing[0]}, given are {given}; name its source in the "
                f"--data file, such as {missing[0]}: {{source: ...}}"
            )
        if suite.one_of and not set(suite.one_of) & set(data.sources):
            raise DataError(
                f"--suite {name}: needs one of the roles {', '.join(suite.one_of)}, given are {given}; "
                "name its source in the --data file"
            )


def refuse_missing_models(request: EvaluationRequest, names: Sequence[str]) -> None:
    """Refuse models and adapters that are not there, before anything is loaded.

    Raises:
        UserError: If a suite needs a retain-only model and none is given.
        ModelError: If a source is no model, or the adapter's folder holds none.
    """
    for name in names:
        if SUITES[name].needs_retain_only and request.retain_only is None:
            raise UserError(
                f"--suite {name}: needs a model that never saw the forget set; make one with `unlearn-tune "
                "prepare` and give it as --retain-only, or use --suite utility"
            )
    for option, source in (
        ("MODEL", request.model),
        ("--retain-only", request.retain_only),
        ("--initial", request.initial),
    ):
        if source is not None:
            locate(ModelConfig(source=source), field=option)
    folder = request.adapter
    if folder is None:
        return
    for name in _ADAPTER_FILES:
        if not (folder / name).is_file():
            advice = (
                "it is a whole model, give it as MODEL"
                if is_model_folder(folder)
                else "give a folder that `unlearn-tune export` or PEFT's save_pretrained wrote"
            )
            raise ModelError(f"--adapter: {str(folder)!r} holds no {name}; {advice}")


def _loader(
    option: str,
    source: str | None,
    request: EvaluationRequest,
    like: LoadedModel,
    pace: Pace,
) -> Callable[[], Subject] | None:
    if source is None:
        return None

    def load() -> Subject:
        model = load_model(_named(source, request), request.engine, field=option)
        if vocabulary_size(model.network) != vocabulary_size(like.network):
            raise ModelError(
                f"{option}: {source!r} knows {vocabulary_size(model.network)} token ids and MODEL "
                f"{vocabulary_size(like.network)}; the two must share a tokenizer"
            )
        return _as_loaded(model, source, request, pace)

    return load


def _named(source: str, request: EvaluationRequest) -> ModelConfig:
    return ModelConfig(source=source, tokenizer=request.tokenizer)


def _as_loaded(model: LoadedModel, name: str, request: EvaluationRequest, pace: Pace) -> Subject:
    return Subject(model, name=name, batch_size=request.batch_size, is_kept=True, pace=pace)


def _subject(model: LoadedModel, request: EvaluationRequest, pace: Pace) -> Subject:
    if request.adapter is None:
        return _as_loaded(model, request.model, request, pace)
    with foreign(partial(_not_fitting, request)):
        network = load_adapter(model.network, request.adapter)
    return Subject(
        model,
        name=f"{request.model} with {request.adapter}",
        batch_size=request.batch_size,
        network=network.requires_grad_(False),
        has_adapter=True,
        pace=pace,
    )


def _not_fitting(request: EvaluationRequest, err: Exception) -> ModelError:
    return ModelError(
        f"--adapter: {str(request.adapter)!r} does not fit {request.model!r}: {in_a_line(err)}; give the model "
        "that it was trained on"
    )


def _adapter_identity(folder: Path) -> str:
    digests = {}
    for name in _ADAPTER_FILES:
        with (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return f"sha256:{content_key(digests)}"
