"""A tuning guide for one model and data, from its sweeps: what mattered, where it works, what to try next.

Every sentence names the trials that it rests on. What chance explains as well is not said; what the trials are too few
for is said to be so.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tuning.importance import (
    MEANINGS,
    Estimate,
    Importances,
    importances,
    judged,
    needed,
    not_judged,
)
from tuning.knobs import (
    SURE,
    EdgeHit,
    association,
    cliff,
    edge_hits,
    feasible_window,
    finished,
    good_rule,
    good_trials,
    holm,
    interactions,
)
from tuning.next_sweep import next_sweep
from tuning.places import is_ordered
from tuning.pool import Pool
from tuning.ranking import best, is_candidate, tied_with_best
from tuning.records import TrialRecord
from tuning.results import GUARD_STOPS
from tuning.wording import decimals, duration, parameter, parameters, percent

Section = Literal["mattered", "windows", "cliffs", "together", "wasted", "defaults"]

HEADINGS: Final[Mapping[Section, str]] = {
    "mattered": "Which parameters mattered",
    "windows": "Where each works",
    "cliffs": "Where trials break a limit",
    "together": "What acts together",
    "wasted": "What was spent in vain",
    "defaults": "What to use",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence of the guide.

    Attributes:
        section: Where it stands.
        text: The sentence.
        trials: Trials that it rests on, as a person finds them.
        is_shown: Whether the trials show it; false where they are too few to say.
    """

    section: Section
    text: str
    trials: tuple[str, ...]
    is_shown: bool = True


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The guide.

    Attributes:
        runs: Names of the runs.
        n_trials: Finished trials that it rests on.
        findings: Its sentences, in the order of :data:`HEADINGS`.
        recommended: Values of the best trial; ``None`` where no trial kept every limit.
        next_sweep: Plain values of the sweep to make next.
    """

    runs: tuple[str, ...]
    n_trials: int
    findings: tuple[Finding, ...]
    recommended: Mapping[str, Any] | None
    next_sweep: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "runs": list(self.runs),
            "n_trials": self.n_trials,
            "findings": [
                {
                    "section": f.section,
                    "text": f.text,
                    "trials": list(f.trials),
                    "shown": f.is_shown,
                }
                for f in self.findings
            ],
            "recommended": None if self.recommended is None else dict(self.recommended),
            "next_sweep": dict(self.next_sweep),
        }


def advise(pool: Pool) -> Advice:
    """Read the trials of a pool."""
    first = best(pool.trials)
    weights = importances(pool.space, pool.trials)
    hits = {name: edge_hits(pool.trials, name, of) for name, of in pool.space.items()}
    findings = [
        *_mattered(pool, weights),
        *_windows(pool, hits),
        *_cliffs(pool),
        *_together(pool),
        *_wasted(pool),
        *_defaults(pool, first),
    ]
    return Advice(
        runs=tuple(run.name for run in pool.runs),
        n_trials=len(finished(pool.trials)),
        findings=tuple(findings),
        recommended=None if first is None else dict(first.params),
        next_sweep=next_sweep(pool, hits),
    )


def _named(pool: Pool, numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(pool.label(n) for n in numbers)


def _too_little(pool: Pool, section: Section, of_what: str) -> Finding:
    """What all finished trials together do not show."""
    return Finding(
        section=section,
        text=f"Not enough evidence {of_what}",
        trials=_finished(pool),
        is_shown=False,
    )


def _finished(pool: Pool, name: str | None = None) -> tuple[str, ...]:
    """The finished trials that have a field; all that finished where none has it, and all there are where none did."""
    of = finished(pool.trials)
    return _named(pool, _of([t for t in of if name in t.params] or of or pool.trials))


def _of(trials: Sequence[TrialRecord]) -> list[int]:
    return [t.number for t in trials]


def _mattered(pool: Pool, weights: Importances | None) -> Iterator[Finding]:
    if weights is None:
        yield _too_little(pool, "mattered", f"which parameters mattered: {_why_unknown(pool)}.")
    else:
        yield from _importances(pool, weights)
    why_not = not_judged(pool.space, pool.trials)
    why_not |= dict.fromkeys(pool.apart, "only some of the runs search it")
    if why_not and finished(pool.trials):  # of none it is said above
        yield Finding(
            section="mattered",
            text=f"Not judged: {', '.join(f'{name} ({why})' for name, why in why_not.items())}.",
            trials=_finished(pool),
            is_shown=False,
        )


def _why_unknown(pool: Pool) -> str:
    """Why nothing is said of the importance of any parameter."""
    of, n = finished(pool.trials), len(judged(pool.space, pool.trials))
    if not of:
        return "no trial finished"
    if n == 0:
        return "no parameter that all of them have differs between the trials"
    if len(of) < needed(n):
        return (
            f"{len(of)} trials finished, and {needed(n)} are needed for {n} parameter{'s' * (n != 1)} that differ"
            f"{'s' * (n == 1)} between them"
        )
    return "all trials are worth the same"


def _importances(pool: Pool, weights: Importances) -> Iterator[Finding]:
    raw = {name: association(pool.trials, name, pool.space[name]) for name in weights.fanova}
    chances = holm({name: chance for name, chance in raw.items() if chance is not None})
    for name, estimate in weights.fanova.items():
        other = weights.ped_anova[name]
        shares = f"fANOVA {_share(estimate)}, PED-ANOVA {_share(other)}"
        is_shown = chances.get(name, 1.0) <= SURE
        verdict = (
            f"{name} mattered (chance alone: {_chance(chances[name])})"
            if is_shown
            else f"Not enough evidence that {name} mattered"
        )
        yield Finding(
            section="mattered",
            text=f"{verdict}: {shares}.",
            trials=_named(pool, weights.trials),
            is_shown=is_shown,
        )
    yield Finding(
        section="mattered",
        text="Shares of these parameters; in brackets where nine in ten redraws of the trials put them. "
        + "; ".join(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items())
        + ".",
        trials=_named(pool, weights.trials),
    )


def _windows(pool: Pool, hits: Mapping[str, Sequence[EdgeHit]]) -> Iterator[Finding]:
    good = good_trials(pool.trials)
    rule = good_rule(pool.runs[0].spec.objective)  # all runs of a pool have one objective
    for name, dimension in pool.space.items():
        if not is_ordered(dimension):
            yield from _by_choice(pool, name, good)
            continue
        window = feasible_window(pool.trials, name, dimension)
        if window is None:
            yield Finding(
                section="windows",
                text=f"Not enough evidence where {name} works: fewer than two trials with it kept every limit and "
                f"{rule}.",
                trials=_finished(pool, name),
                is_shown=False,
            )
            continue
        width = "" if window.decades is None else f", {window.decades:.2f} decades"
        inside = (
            f"; inside, {len(window.others)} other trial{'s' * (len(window.others) != 1)} did not "
            f"({', '.join(_named(pool, window.others))})"
            if window.others
            else ""
        )
        yield Finding(
            section="windows",
            text=f"{name} works from {parameter(window.low)} to {parameter(window.high)}{width}: {len(window.good)} "
            f"trials kept every limit and {rule} there{inside}.",
            trials=_named(pool, window.good),
        )
        for hit in hits[name]:
            yield Finding(
                section="windows",
                text=f"{len(hit.at)} of {len(hit.good)} good trials lie at the {hit.end} end of {name}: widen it "
                f"(chance alone: {_chance(hit.chance)}).",
                trials=_named(pool, hit.at),
            )


def _by_choice(pool: Pool, name: str, good: Sequence[TrialRecord]) -> Iterator[Finding]:
    of = [t for t in finished(pool.trials) if name in t.params]
    numbers = {t.number for t in good}
    counts = []
    for choice in pool.space[name].categorical or ():
        with_it = [t for t in of if t.params[name] == choice]
        n_good = sum(t.number in numbers for t in with_it)
        kept = sorted(t.value for t in with_it if is_candidate(t) and t.value is not None)
        ends = f" ({decimals(kept[0])} to {decimals(kept[-1])})" if kept else ""
        counts.append(f"{choice} {n_good} of {len(with_it)}{ends}")
    yield Finding(
        section="windows",
        text=f"{name}, good trials by choice, and the values of those within the limits: {', '.join(counts)}.",
        trials=_finished(pool, name),
        is_shown=bool(of),
    )


def _cliffs(pool: Pool) -> Iterator[Finding]:
    found = {name: cliff(pool.trials, name, of) for name, of in pool.space.items()}
    cliffs = {name: c for name, c in found.items() if c is not None}
    chances = holm({name: c.chance for name, c in cliffs.items()})
    shown = {name: c for name, c in cliffs.items() if chances[name] <= SURE}
    for name, at in shown.items():
        far = len(at.broken_beyond) + len(at.kept_beyond)
        near = len(at.broken_before) + len(at.kept_before)
        other = "below" if at.beyond == "above" else "above"
        yield Finding(
            section="cliffs",
            text=f"{at.beyond.capitalize()} {name} = {parameter(at.at)} {len(at.broken_beyond)} of {far} trials never "
            f"kept every limit, {other} it {len(at.broken_before)} of {near} (chance alone: {_chance(chances[name])}).",
            trials=_named(pool, at.trials),
        )
    if not shown:
        yield _too_little(
            pool, "cliffs", "that a limit is broken beyond some value of a parameter."
        )


def _together(pool: Pool) -> Iterator[Finding]:
    pairs = interactions(pool.trials, pool.space, list(pool.space))
    chances = holm({(pair.first, pair.second): pair.chance for pair in pairs})
    shown = [pair for pair in pairs if chances[pair.first, pair.second] <= SURE]
    for pair in shown:
        chance = chances[pair.first, pair.second]
        way = "higher" if pair.sign > 0 else "lower"
        yield Finding(
            section="together",
            text=f"{pair.first} and {pair.second} act together: the higher {pair.second}, the {way} the best "
            f"{pair.first} (chance alone: {_chance(chance)}).",
            trials=_named(pool, pair.trials),
        )
    if not shown:
        yield _too_little(pool, "together", "that two parameters act together.")


def _wasted(pool: Pool) -> Iterator[Finding]:
    ended = [t for t in pool.trials if t.state in ("COMPLETE", "PRUNED", "FAIL")]
    total = sum(t.duration_s or 0.0 for t in ended)
    kinds = {
        "stayed without effect": [t for t in ended if t.stopped_by == "no_effect"],
        "broke a limit before any probe had both forgotten and kept every limit": [
            t for t in ended if t.state == "PRUNED" and t.stopped_by in GUARD_STOPS
        ],
        "ended without a probe that kept every limit": [
            t
            for t in ended
            if t.state == "COMPLETE" and not t.feasible and t.stopped_by != "no_effect"
        ],
        "failed": [t for t in ended if t.state == "FAIL"],
    }
    for what, of in kinds.items():
        if not of:
            continue
        seconds = sum(t.duration_s or 0.0 for t in of)
        share = (
            f", {percent(seconds / total)} of the time of all trials ({duration(seconds)})"
            if total
            else ""
        )
        yield Finding(
            section="wasted",
            text=f"{len(of)} of {len(ended)} trials {what}{share}.",
            trials=_named(pool, _of(of)),
        )
    if ended and not any(kinds.values()):
        *others, last = kinds
        yield Finding(
            section="wasted",
            text=f"None of {len(ended)} trials {', '.join(others)}, or {last}.",
            trials=_named(pool, _of(ended)),
        )


def _defaults(pool: Pool, first: TrialRecord | None) -> Iterator[Finding]:
    if first is None:
        yield _too_little(pool, "defaults", "for defaults: no trial kept every limit.")
        return
    yield Finding(
        section="defaults",
        text=f"The best is {parameters(first.params)}, at step {first.step}.",
        trials=_named(pool, [first.number]),
    )
    tied = tied_with_best(pool.trials)
    if tied:
        spans = []
        for name, dimension in pool.space.items():
            values = [t.params[name] for t in (first, *tied) if name in t.params]
            if is_ordered(dimension) and values:
                low, high = min(map(float, values)), max(map(float, values))
                spans.append(f"{name} from {parameter(low)} to {parameter(high)}")
            elif values:
                spans.append(f"{name} {' or '.join(map(str, dict.fromkeys(values)))}")
        yield Finding(
            section="defaults",
            text=f"{len(tied)} trial{'s' * (len(tied) != 1)} cannot be told from it by value: {'; '.join(spans)}.",
            trials=_named(pool, sorted([first.number, *_of(tied)])),
        )


def _share(estimate: Estimate) -> str:
    """``62 % (41 to 80)``."""
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"


def _chance(chance: float) -> str:
    return f"{chance:.3f}" if chance >= 0.001 else "below 0.001"
