"""Which shared work a trial needs: what is done once for all trials with the same answer. Imports no torch."""

from collections.abc import Hashable, Iterable

from core.config import TrialConfig

DECOMPOSED_RANK = 32
"""One decomposition serves all ranks up to this; larger ranks are rounded up to a power of two."""


def decomposed_rank(rank: int) -> int:
    """Rank of the decomposition that an adapter of ``rank`` is cut from."""
    return max(DECOMPOSED_RANK, 1 << (rank - 1).bit_length())


def shared_work(trial: TrialConfig) -> Hashable:
    """What determines the work that :func:`core.worker.share_work` does for a trial; equal for equal work.

    Baselines depend on model and data, which all trials of a sweep share. Beyond them there are the initial
    factors, the terms of the reference model that the losses need, and the checks of rows. Terms are kept by
    row: a trial of another seed, which may read other retain rows, measures those that are missing itself.
    """
    method, adapter = trial.method, trial.adapter
    is_weighted = method.adapter_init in ("fila", "vila")
    factors = None
    if adapter.kind == "lora":
        factors = (
            method.adapter_init,
            adapter.targets,
            adapter.layers,
            trial.fisher if is_weighted else None,
            adapter.scaling if method.adapter_init == "vila" else None,
            decomposed_rank(adapter.rank),
        )
    retain = method.retain_facts
    needs = method.forget_facts.needs | (frozenset() if retain is None else retain.needs)
    terms = (
        method.forget_facts.reads,
        method.forget_facts.needs,
        method.n_left_alone,
        method.alternatives if method.reads_alternatives else None,
        None if retain is None else (method.retain_source, retain.needs),
        method.rmu.layer if needs & {"hidden", "reference_hidden"} else None,
        trial.batch.model_copy(update={"probe_batch_size": 1}),
    )
    return factors, terms


def one_for_each_work(trials: Iterable[TrialConfig]) -> list[TrialConfig]:
    """One trial for each distinct shared work: of those with equal work the one of the largest rank."""
    found: dict[Hashable, TrialConfig] = {}
    for trial in trials:
        work = shared_work(trial)
        kept = found.setdefault(work, trial)
        if trial.adapter.rank > kept.adapter.rank:
            found[work] = trial
    return list(found.values())
