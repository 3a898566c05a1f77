"""The pages of guidelines in Markdown, and the list of them; figures lie beside as SVG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from core.store.durable import commit_text
from tuning.guidelines.catalogue import PresetName, guidelines
from tuning.guidelines.findings import PerUnit
from tuning.guidelines.inference import ALPHA, Compared, Estimate, estimate
from tuning.guidelines.record import Judged, Record
from tuning.plots.guideline import EffectData, LinesData
from tuning.wording import duration, listed

INDEX = "README.md"


def write_pages(folder: Path, found: Sequence[Judged]) -> list[Path]:
    """Write the page of every measured guideline and the list of all; verdicts are of the whole set.

    Returns:
        The pages, the list last.
    """
    written = []
    for one in found:
        if one.record is None:
            continue
        figures = _write_figures(folder, one)
        path = folder / f"{_stem(one)}.md"
        commit_text(path, page(one, figures=figures))
        written.append(path)
    commit_text(folder / INDEX, index(found))
    return [*written, folder / INDEX]


def page(one: Judged, *, figures: Sequence[str]) -> str:
    """The page of a measured guideline.

    Args:
        one: The guideline, what was measured, and what follows.
        figures: Names of its figures, the effects first.
    """
    guideline, record = one.guideline, one.record
    assert record is not None  # only measured guidelines have a page
    shown = [*(f"![{name}]({name})" for name in figures)]
    lines = [
        f"# {guideline.number}. {guideline.claim}",
        f"**Verdict: {one.verdict}**, for the following and nothing else: {' '.join(record.subject)}",
        f"Source of the claim: {guideline.source}",
        "## Measured",
        _effects_table(one),
        _reason(one),
        *(f"- {remark}" for remark in record.findings.remarks),
        shown[0],
        "## What the test is",
        guideline.reads,
        f"Statistic `{guideline.statistic}`; settings "
        f"{_settings(one)}. The claim is supported if every effect lies where it is claimed, contradicted "
        f"if one lies outside: by its whole 95 % interval, and by a p-value of at most {ALPHA:g} after Holm's "
        "correction over all guidelines of the set (one that is not measured counts as a p-value of 1). "
        "[How intervals and p-values are made](README.md#how-a-verdict-is-reached).",
        "## What could have been seen",
        *(f"- {_power(name, one.tested[name])}" for name in guideline.verdict),
        "## More numbers",
        _details_table(record.findings.details),
        *shown[1:],
        "## Again",
        f"Measured on {record.date}, {record.machine}, preset `{record.preset}`{_took(record)}:",
        "```\n" + "\n".join(record.commands) + "\n```",
    ]
    return _joined(lines)


def index(found: Sequence[Judged]) -> str:
    """The list of all guidelines, and how verdicts are reached."""
    rows = [
        f"| {one.guideline.number} | {_linked(one)} | `{one.guideline.id}` | {one.verdict or 'not measured'} | "
        f"{_p(one.p) if one.record else ''} | {_p(one.adjusted_p) if one.record else ''} | {_measured_on(one)} |"
        for one in found
    ]
    lines = [
        "# Tuning guidelines, tested",
        "What the literature and practitioners advise on tuning unlearning, each as a claim in our words, with what "
        "tests it, sweeps or published trials, and a statistic and a rule that were written down before the sweeps "
        "ran. `unlearn-tune reproduce` lists them with their verdicts, `unlearn-tune reproduce ID` (or its number) "
        "runs or reuses the sweeps and writes these pages. A guideline may come out contradicted on a small model; "
        "the page says for which model, data, method and budget.",
        "\n".join(
            [
                "| | claim | id | verdict | p | p, Holm | measured on |",
                "|---:|---|---|---|---:|---:|---|",
                *rows,
            ]
        ),
        "## How a verdict is reached",
        "Every effect is one number for each unit: a seed of our sweeps, or a method or task of published trials. Its "
        "95 % interval is that of the mean by the bootstrap over units, with the percentiles moved outwards as "
        "Student's t asks for so few units (Hesterberg, The American Statistician 2015): the interval of five seeds is "
        "about their range. Scatter below the resolution of the measurement is not believed. P-values are Student's, "
        "two-sided; a claim with several effects has the largest for it, the smallest times their number against it. "
        "Holm's correction is over all guidelines of the set, whether measured or not, so that a verdict can only "
        "become firmer as more are measured.",
        "A claim is *supported* if the intervals of all its effects lie where it says and the corrected p-value is at "
        "most 0.05, *contradicted* if an interval lies outside and the p-value is as small, else *inconclusive*. "
        "Each page says how large an effect would have had to be to be seen.",
        "## Presets",
        "`quick` runs SmolLM2-135M on two CPU cores, meant for at most 30 minutes a guideline; `gpu` one GPU and TOFU "
        f"with a 1B model; `full` the papers' models by hub id on a cluster. {_exceptions()} "
        "Guidelines that ask for the same sweep "
        "share its run, below `runs/guideline-*`; a run that is there is reused, one that was interrupted is "
        "resumed. Guidelines on published trials read them from the folder that `UNLEARN_TUNE_DATA` names. A "
        "measurement replaces the one of the same guideline in the folder of the pages; `--out` keeps presets apart.",
    ]
    return _joined(lines)


def measured_text(one: Judged) -> str:
    """Claim, measured and verdict for the terminal."""
    lines = [f"claim: {one.guideline.claim}", f"source: {one.guideline.source}"]
    for name, rule in one.guideline.verdict.items():
        tested = one.tested.get(name)
        if tested is not None:
            lines.append(
                f"measured: {name} {_interval(tested.estimate)} over {tested.estimate.n} units, "
                f"claimed {rule.words} ({rule.meaning})"
            )
    lines.append(f"verdict: {one.verdict or 'not measured'}; {_reason(one)}")
    return "\n".join(lines)


def list_text(found: Sequence[Judged]) -> str:
    """All guidelines for the terminal: number, id, verdict and preset, then the claim."""
    lines = []
    for one in found:
        under = f" (preset {one.record.preset})" if one.record else ""
        name = f"{one.guideline.number:2d}  {one.guideline.id}"
        lines += [f"{name}: {one.verdict or 'not measured'}{under}", f"    {one.guideline.claim}"]
    return "\n".join(lines)


def _write_figures(folder: Path, one: Judged) -> list[str]:
    from tuning.plots.drawing.guideline import effects_matplotlib, lines_matplotlib, svg

    assert one.record is not None
    names = [f"{_stem(one)}-effects.svg"]
    commit_text(
        folder / names[0], svg(effects_matplotlib([effect_figure(one, n) for n in one.tested]))
    )
    for i, data in enumerate(one.record.findings.figures, start=1):
        names.append(f"{_stem(one)}-{i}.svg")
        commit_text(folder / names[-1], svg(lines_matplotlib(shown(data))))
    return names


def effect_figure(one: Judged, name: str) -> EffectData:
    """An effect with its interval, its units and the claimed region."""
    assert one.record is not None
    rule, found = one.guideline.verdict[name], one.tested[name].estimate
    values = one.record.findings.effects[name].values()
    return EffectData(
        title=f"{name}: {rule.meaning}",
        x_label="large dot: mean; line: 95 % interval; small dots: units; shaded: as claimed",
        value=found.value,
        low=found.low,
        high=found.high,
        units=tuple(v for v in values if math.isfinite(v)),
        claimed_low=rule.region.low,
        claimed_high=rule.region.high,
    )


def shown(data: LinesData) -> LinesData:
    """A figure without lines that have no point."""
    lines = tuple(line for line in data.lines if line.x)
    return LinesData(**(vars(data) | {"lines": lines}))


def _effects_table(one: Judged) -> str:
    rows = ["| effect | measured | 95 % interval | units | claimed |", "|---|---:|---:|---:|---|"]
    for name, rule in one.guideline.verdict.items():
        found = one.tested[name].estimate
        rows.append(
            f"| {name}: {rule.meaning} | {_number(found.value)} | {_number(found.low)} to "
            f"{_number(found.high)} | {found.n} | {rule.words} |"
        )
    return "\n".join(rows)


def _details_table(details: Mapping[str, PerUnit]) -> str:
    if not details:
        return "None beside the effects."
    rows = ["| | mean | smallest | largest | n |", "|---|---:|---:|---:|---:|"]
    for name, values in details.items():
        finite = [v for v in values.values() if math.isfinite(v)]
        if not finite:
            rows.append(f"| {name} | – | – | – | 0 |")
            continue
        mean = estimate(finite).value
        rows.append(
            f"| {name} | {_number(mean)} | {_number(min(finite))} | {_number(max(finite))} | "
            f"{len(finite)} |"
        )
    return "\n".join(rows)


def _reason(one: Judged) -> str:
    """Why the verdict is what it is, in a sentence."""
    if one.record is None:
        return "nothing was measured yet"
    inside = [n for n, t in one.tested.items() if t.is_inside]
    outside = [n for n, t in one.tested.items() if t.is_outside]
    p = f"p = {_p(one.p)}, {_p(one.adjusted_p)} after Holm's correction"
    if one.verdict == "supported":
        return f"Every interval lies where it is claimed; {p}."
    if one.verdict == "contradicted":
        return f"The interval of {', '.join(outside)} lies outside of what is claimed; {p}."
    if outside or len(inside) == len(one.tested):
        return (
            f"The intervals alone would {'contradict' if outside else 'support'} the claim, but not after the "
            f"correction for the number of guidelines; {p}."
        )
    held = [n for n in one.tested if n not in inside]
    return f"The interval of {', '.join(held)} does not lie wholly where it is claimed; {p}."


def _power(name: str, tested: Compared) -> str:
    if not math.isfinite(tested.detectable):
        return f"{name}: with fewer than two units nothing can be told."
    return (
        f"{name}: with {tested.estimate.n} units that scatter as these do, a mean at least "
        f"{_number(tested.detectable)} away from the end of the claimed region would have been told from it with a "
        "probability of 80 % (p < 0.05, before Holm's correction)."
    )


def _settings(one: Judged) -> str:
    assert one.record is not None
    preset = next(name for name in one.guideline.presets if name == one.record.preset)
    settings = one.guideline.settings_under(preset)
    return ", ".join(f"`{name}: {value}`" for name, value in settings.items()) or "none"


def _linked(one: Judged) -> str:
    claim = one.guideline.claim
    return f"[{claim}]({_stem(one)}.md)" if one.record else claim


def _measured_on(one: Judged) -> str:
    """The preset, or that published trials were read."""
    if one.record is None:
        return ""
    name = one.record.preset
    is_published = any(use.published for n, use in one.guideline.presets.items() if n == name)
    return "published trials" if is_published else name


def _exceptions() -> str:
    """Which guidelines read published trials under a preset, and which lack one."""
    reading: dict[str, list[int]] = {}
    lacking: dict[str, list[int]] = {}
    for guideline in guidelines():
        for name in get_args(PresetName):
            if name not in guideline.presets:
                lacking.setdefault(name, []).append(guideline.number)
            elif guideline.presets[name].published:
                reading.setdefault(name, []).append(guideline.number)
    return " ".join(
        [
            *(
                f"Under `{n}`, {listed(found)} read published trials instead."
                for n, found in reading.items()
            ),
            *(f"There is no `{n}` of {listed(found)}." for n, found in lacking.items()),
        ]
    )


def _took(record: Record) -> str:
    """How long the sweeps took, if there were any."""
    if record.minutes is None:
        return ""
    return f", in {duration(60 * record.minutes)}, sweeps shared with other guidelines included"


def _stem(one: Judged) -> str:
    return f"{one.guideline.number:02d}-{one.guideline.id}"


def _interval(found: Estimate) -> str:
    return f"{_number(found.value)} ({_number(found.low)} to {_number(found.high)})"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    text = f"{value:.3g}" if abs(value) >= 1e-4 else "0"
    return text.replace("e+0", "e").replace("e-0", "e-")


def _p(value: float) -> str:
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _joined(blocks: Sequence[str]) -> str:
    """Blocks apart by an empty line, list items in a row."""
    text = ""
    for before, block in zip(["", *blocks], blocks, strict=False):
        is_item = block.startswith("- ") and before.startswith("- ")
        text += block if not text else f"\n{block}" if is_item else f"\n\n{block}"
    return text + "\n"
