"""Figures and tables of verdicts: how often chance does as well, false claims, forgeries, and what attacks leave."""

from collections.abc import Iterator, Mapping, Sequence
from math import comb, factorial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import auc, roc_curve

from clearstamp.evidence.seal import BAR
from clearstamp.evidence.verdict import WEAK
from clearstamp.reproduction.court import UNIT
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import NOT_RUN, finished
from clearstamp.reproduction.report.figures import images_figure
from clearstamp.reproduction.report.sliders import STAMP_ROWS, Slider, frame, still_accurate
from clearstamp.reproduction.report.stages import SCORES, by_experiment, ends, in_words, stages_of
from clearstamp.reproduction.report.tables import shown, spread

LEVELS = (0.5, 0.1, 0.05, 0.01, 0.005, 0.001)
SURE = 0.99
"""The confidence of every band."""
MATCH = 2.0**-BAR


# --------------------------------------------------------------------------------------------------- many seals


def pooled(records: Sequence[Record], name: str) -> NDArray[np.int64]:
    """An array of whole numbers over the records of all seeds, in their order."""
    parts = [r.arrays[name].numpy() for r in sorted(records, key=lambda r: r.seed) if name in r.arrays]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def band(count: int, of: int) -> tuple[float, float]:
    """The band of Clopper and Pearson around a share."""
    found = binomtest(count, of).proportion_ci(SURE, method="exact")
    return float(found.low), float(found.high)


def share(count: int, of: int) -> str:
    """A share with its band."""
    low, high = band(count, of)
    return f"{count / of:.3f} ({low:.3f} to {high:.3f})"


def reached(ps: NDArray[np.int64], level: float) -> int:
    """How many p are no larger than a level."""
    return int((ps <= round(level * UNIT)).sum())


def level_tests(records: Sequence[Record]) -> dict[str, NDArray[np.int64]]:
    """Every test, and its p on all models."""
    return {name: pooled(records, name) for name in (records[0].arrays if records else ())}


def level_table(records: Sequence[Record]) -> Markdown:
    """One line a test: how many of the models without a stamp reach each p, with the band of that share."""
    return shown(
        f"Share of models without a stamp that reach a p, and its {SURE:.0%} band",
        records,
        ("test", "models", *(f"p ≤ {level:g}" for level in LEVELS)),
        (
            (name, f"{len(ps):,}", *(share(reached(ps, level), len(ps)) for level in LEVELS))
            for name, ps in level_tests(records).items()
        ),
    )


def level_figure(records: Sequence[Record]) -> Figure | Markdown:
    """The share of models that reach a p against that p, one panel a test, with its band and the diagonal."""
    tests = {name: ps for name, ps in level_tests(records).items() if "flat" not in name}
    if not tests:
        return Markdown(NOT_RUN)
    figure, axes = plt.subplots(
        2, -(-len(tests) // 2), figsize=(9, 5.5), sharex=True, sharey=True, layout="constrained"
    )
    levels = np.geomspace(1e-3, 1, 40)
    for axis, (name, ps) in zip(axes.flat, tests.items(), strict=False):
        counts = [reached(ps, level) for level in levels]
        bands = np.array([band(count, len(ps)) for count in counts])
        axis.fill_between(levels, *np.clip(bands.T, 1e-4, 1), alpha=0.3, lw=0)
        axis.plot(levels, [count / len(ps) or np.nan for count in counts], drawstyle="steps-post")
        axis.plot([1e-3, 1], [1e-3, 1], color="grey", ls="--", lw=1)
        axis.set_title(name, fontsize=9)
        axis.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-4, 1.2))
    for axis in axes.flat[len(tests) :]:
        axis.axis("off")
    figure.supxlabel("p", fontsize=10)
    figure.supylabel("share of models that reach it", fontsize=10)
    return finished(figure, "Level of each test: the curve has to lie on the dashed line or below it", records)


# -------------------------------------------------------------------------------------------------- false claims


def protocols_table(records: Sequence[Record]) -> Markdown:
    """One line a protocol and a stranger's model: pictures at their places, their correlation, and p.

    Of seals that were drawn, the mean over all of them, and the least p.
    """
    first = records[:1]

    def lines() -> Iterator[tuple[str, ...]]:
        for record in first:
            for stage in record.stages:
                found, protocol = stage.scores, stage.label.partition("/")[0]
                matched = f"{found['matched']} of {found['pictures']}"
                alike = f"{found['correlation']:.2f}"
                yield protocol, str(stage.network), "1", f"{found['accuracy']:.3f}", matched, alike, f"{found['p']:.1e}"
            for name in strangers(record):
                counts, ps = pooled(records, f"matched/{name}"), pooled(records, f"order/{name}")
                accuracy = f"{record.results[f'dated/{name}']['accuracy']:.3f}"
                least = f"{ps.min() / UNIT:.1e} at least, {np.median(ps) / UNIT:.2f} in the median"
                yield "drawn", name, f"{len(counts):,}", accuracy, f"{counts.mean():.2f} in the mean", "", least

    head = ("protocol", "stranger's model", "claims", "accuracy", "pictures at their places", "correlation", "p")
    return shown("The same accuser under three protocols", records, head, lines(), "llr")


def strangers(record: Record) -> list[str]:
    """The models that an accuser claims, by name."""
    return list(dict.fromkeys(str(stage.network) for stage in record.stages))


def places_by_chance(least: int, of: int) -> float:
    """P(at least so many are at their places) in a random order."""

    def deranged(count: int) -> int:
        return sum((-1) ** j * factorial(count) // factorial(j) for j in range(count + 1))

    return sum(comb(of, n) * deranged(of - n) for n in range(least, of + 1)) / factorial(of)


def claimed_figure(record: Record) -> Figure:
    """The pictures that an accuser claims, and what strangers' models show at his keys."""
    shown = {f"developed, of a stranger's {name}": record.arrays[name] for name in strangers(record)}
    return images_figure({"claimed": record.arrays["claimed"], **shown}, "A false claim, dated", [record])


def matches_table(records: Sequence[Record]) -> Markdown:
    """One line a stranger's model: how often so many pictures or more are at their places, beside chance."""
    first = records[:1]
    of = first[0].results[first[0].stages[0].label]["pictures"] if first else 0
    least = range(1, 5)
    rows = [
        (name, f"{len(counts):,}", *(share(int((counts >= n).sum()), len(counts)) for n in least))
        for record in first
        for name in strangers(record)
        if len(counts := pooled(records, f"matched/{name}"))
    ]
    if rows:
        rows.append(("by chance", "", *(f"{places_by_chance(n, of):.3f}" for n in least)))
    head = ("stranger's model", "seals", *(f"at least {n} of {of}" for n in least))
    return shown(f"Pictures at their places where the order was drawn, with {SURE:.0%} bands", records, head, rows)


SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FEW = 10
"""Of so many seeds that were tried in all, one part tells how p falls; the best of them all is one number."""


def ground(ps: NDArray[np.int64], on: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """Numbers n of seeds, and the mean p `on` a model at the best of n seeds by `ps`, over all choices of n of them.

    Of N seeds the i-th best is the best of n in comb(N - i, n - 1) of comb(N, n) choices.
    """
    ranked, count = on[np.argsort(ps, kind="stable")] / UNIT, len(ps)
    sizes = [size for size in SIZES if size <= count]
    weights = ([comb(count - 1 - i, n - 1) / comb(count, n) for i in range(count)] for n in sizes)
    return sizes, [float(ranked @ np.array(w)) for w in weights]


def slope(ps: NDArray[np.int64]) -> float:
    """How the least p falls with the number of seeds: of a straight line through logarithms, by least squares.

    The least of n even p is 1 / (n + 1) in the mean.
    """
    sizes, least = ground(ps, ps)
    used = sum(size <= len(ps) / FEW for size in sizes)
    return float(np.polyfit(np.log(np.array(sizes[:used]) + 1), np.log(least[:used]), 1)[0])


def grinding_figure(records: Sequence[Record]) -> Figure | Markdown:
    """The least p against the seeds tried: on the model that they are tried on, and on strangers' at that seed."""
    if not records:
        return Markdown(NOT_RUN)
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for test, style in (("order", "-"), ("letters", ":")):
        own = pooled(records, f"{test}/ground")
        for place, name in enumerate(["ground", *strangers(records[0])]):
            sizes, ps = ground(own, pooled(records, f"{test}/{name}"))
            words = f"{test}, on his own model" if name == "ground" else f"{test}, on a stranger's {name}"
            axis.plot(sizes, ps, ls=style, color=f"C{place}", marker="o", ms=3, label=words)
    axis.plot(SIZES, [1 / (size + 1) for size in SIZES], color="grey", ls="--", lw=1, label="1 / (seeds + 1)")
    axis.axhline(float(WEAK), color="C3", lw=1)
    axis.text(
        1,
        float(WEAK) * 1.2,
        f"WEAK from {float(WEAK):.0e} on; MATCH from 2^-{BAR} = {MATCH:.0e} on, far below",
        fontsize=8,
    )
    axis.set(xscale="log", yscale="log", xlabel="seeds tried", ylabel="mean p at the best of them", ylim=(5e-7, 1.5))
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return finished(figure, "Grinding: mean p at the best of so many seeds; of all of them it is one number", records)


# ----------------------------------------------------------------------------------------------------- forgeries

KINDS = {"keys": "optimised keys", "head": "painted heads", "copy": "copied pictures"}
TOLD_APART = ("SSIM", "correlation", "template", "verifier", "sealed test")


def roc_figure(records: Sequence[Record]) -> Figure | Markdown:
    """Genuine stamps that pass against forgeries that do, one panel a kind of forgery, one line a score."""
    if not records:
        return Markdown(NOT_RUN)
    figure, axes = plt.subplots(1, len(KINDS), figsize=(9, 3.3), sharey=True, layout="constrained")
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for score in TOLD_APART:
            wrong, right, _ = roc(records, kind, score)
            axis.plot(np.maximum(wrong, 3e-3), right, marker=".", ms=4, label=score)
        axis.set(xscale="log", title=title, xlabel="forgeries that pass", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("genuine stamps that pass")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(TOLD_APART))
    return finished(figure, "Genuine stamps beside forgeries: receiver operating characteristics", records)


def roc(
    records: Sequence[Record], kind: str, score: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shares of forgeries of a kind and of genuine stamps that pass at falling thresholds of a score."""
    genuine, forged = (
        np.concatenate([r.arrays[f"{which}/{score}"].numpy() for r in records]) for which in ("genuine", kind)
    )
    truth = np.repeat([1, 0], [len(genuine), len(forged)])
    wrong, right, thresholds = roc_curve(truth, np.concatenate([genuine, forged]), drop_intermediate=False)
    return wrong, right, thresholds


def roc_table(records: Sequence[Record]) -> Markdown:
    """One line a score: for each kind of forgery the area under the curve, and the genuine that pass if none may."""

    def cells(score: str) -> Iterator[str]:
        for kind in KINDS:
            wrong, right, _ = roc(records, kind, score)
            yield f"{auc(wrong, right):.3f} / {right[wrong == 0].max():.2f}"

    counts = {kind: len(pooled(records, f"{kind}/SSIM")) for kind in ("genuine", *KINDS)}
    head = ("score", *(f"{title} ({counts[kind]})" for kind, title in KINDS.items()))
    return shown(
        f"Area under the curve / genuine stamps ({counts['genuine']}) that pass where no forgery does",
        records,
        head,
        ((score, *cells(score)) for score in TOLD_APART) if records else (),
    )


def forgeries_figure(record: Record, count: int = 6) -> Figure:
    """What genuine and forged claims call their secrets, and what the model shows."""
    rows = {}
    for kind, title in ({"genuine": "a genuine stamp"} | KINDS).items():
        rows[f"{title}: secrets"] = record.arrays[f"{kind}/secrets"][:count]
        rows[f"{title}: developed"] = record.arrays[f"{kind}/shown"][:count]
    return images_figure(rows, "The first claim of each kind", [record])


# ------------------------------------------------------------------------------------------------ what attacks leave


def verdict_slider(record: Record, attack: str = "", *, name: str = "attack") -> Slider:
    """A sealed stamp under a campaign's attacks: pictures, the letters that are read in them, and the verdict.

    Shows the stages that belong to `attack` (its steps on the way and its end), or, for none, the end of each attack.
    """
    stages = stages_of(record, attack)
    frames = [frame(record.arrays["secrets"], record.arrays[stage]) for stage in stages]
    labels = []
    for stage in stages:
        found, columns = record.results[stage], frames[0].shape[1] // 30
        each = found["letters"] // len(record.arrays["secrets"])
        read = " ".join(found["read"][each * place : each * (place + 1)] for place in range(max(1, columns)))
        labels.append(
            f"{stage.removeprefix(attack).lstrip(', ') or stage}: read {read} ...; "
            f"{found['letters right']} of {found['letters']} letters right, p = {found['p']:.1e}, {found['verdict']}; "
            f"accuracy {found['accuracy']:.3f}, mean SSIM {found['ssim']:.3f}"
        )
    alt = f"{in_words(record)}: verdicts under {attack or 'every attack'}"
    start = still_accurate([record.results[stage]["accuracy"] for stage in stages])
    return Slider(frames, labels, name, alt, [record], STAMP_ROWS, start)


def verdicts_table(records: Sequence[Record], stages: Sequence[str] = ()) -> Markdown:
    """One line a stage, or an attack at its end: accuracy, SSIM, and the fewest letters and greatest p of all seeds."""

    def line(made: Sequence[Record], stage: str) -> tuple[str, ...]:
        found = [r.results[stage] for r in made]
        return (
            stage,
            str(len(found)),
            *(spread([f[score] for f in found]) for score in ("accuracy", "ssim", "developed_ssim")),
            f"{min(f['letters right'] for f in found)} of {found[0]['letters']}",
            f"{max(f['p'] for f in found):.1e}",
            ", ".join(dict.fromkeys(f["verdict"] for f in found)),
            ", ".join(dict.fromkeys(f.get("attempt", "as is") for f in found)),
        )

    head = ("after", "seeds", "accuracy", SCORES["ssim"], SCORES["developed_ssim"], "letters right", "p", "", "read")
    return shown(
        "Verdicts on sealed stamps, the worst of all seeds",
        records,
        head,
        (line(made, stage) for made in by_experiment(records).values() for stage in stages or ends(made[0])),
        "lrrrrrrll",
    )


def power_figure(records: Sequence[Record]) -> Figure | Markdown:
    """p against the strength of each kind of attack, beside SSIM, with the lines from which on a p counts."""
    courses = {title: course for record in records for title, course in strengths(record)}
    if not courses:
        return Markdown(NOT_RUN)
    columns = min(3, len(courses))
    figure, axes = plt.subplots(
        -(-len(courses) // columns),
        columns,
        figsize=(9, 3 * -(-len(courses) // columns)),
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, course) in zip(axes.flat, courses.items(), strict=False):
        places, scores = [place for place, _ in course], [found for _, found in course]
        lines = axis.plot(places, [found["p"] for found in scores], color="C0", marker="o", ms=3, label="p")
        for bar, words in ((float(WEAK), "WEAK"), (MATCH, "MATCH")):
            axis.axhline(bar, color="grey", lw=1, ls="--")
            axis.text(places[0], bar, words, fontsize=7, va="bottom")
        axis.set(yscale="log", ylim=(1e-55, 10), xlabel=title)
        other = axis.twinx()
        for score, colour in (("ssim", "C1"), ("developed_ssim", "C2"), ("accuracy", "C7")):
            lines += other.plot(places, [found[score] for found in scores], color=colour, lw=1, label=SCORES[score])
        other.set_ylim(-0.05, 1.05)
        if axis in axes[:, 0]:
            axis.set_ylabel("p")
    for axis in axes.flat[len(courses) :]:
        axis.axis("off")
    figure.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="outside lower center", ncols=4)
    return finished(figure, "Power: p by the strength of an attack, beside SSIM and accuracy", records)


STRENGTHS = {"pruning": ("amount", "share of weights pruned"), "noise": ("scale", "noise, in standard deviations")}


def strengths(record: Record) -> Iterator[tuple[str, list[tuple[float, Mapping[str, Any]]]]]:
    """The courses of a campaign: each title, and strength and scores along it, from the model before."""
    before = (0.0, record.results["before"])
    attacks = record.parameters["attacks"]
    for attack, (field, title) in STRENGTHS.items():
        labels = [label for label, given in attacks.items() if given["attack"] == attack]
        if labels:
            yield title, [before, *((attacks[label][field], record.results[label]) for label in labels)]
    for label, given in attacks.items():
        if given["attack"] in STRENGTHS or not given.keys() & {"steps", "epochs"}:
            continue
        along = [stage for stage in record.stages if stage.attack == label]
        last = given.get("steps", given.get("epochs"))
        course = [(float(last if s.step is None else s.step), s.scores) for s in along]
        yield (
            f"{given['attack'].replace('-', ' ')}, {label}: {'steps' if 'steps' in given else 'epochs'}",
            [before, *course],
        )


# ------------------------------------------------------------------------------------------------------- the sum


def sealed_cost_table(sealed: Sequence[Record], plain: Sequence[Record]) -> Markdown:
    """One line a seed: steps of hardening and accuracy of a sealed stamp, beside a plain one and no stamp at all."""

    def line(own: Record, other: Record, twin: Record) -> tuple[str, ...]:
        steps = [r.results["hardened"]["steps"] for r in (own, other)]
        reached = [r.results["trained"]["accuracy"] for r in (own, other, twin)]
        points = f"{100 * (reached[0] - reached[2]):+.2f}"
        return str(own.seed), *map(str, steps), f"{steps[0] / steps[1]:.2f}", *(f"{r:.4f}" for r in reached), points

    head = ("seed", "steps: sealed", "plain", "ratio", "accuracy: sealed", "plain", "no stamp", "points to no stamp")
    return shown("What sealing costs", (*sealed, *plain), head, (line(*each) for each in trios(sealed, plain)), "r")


def trios(sealed: Sequence[Record], plain: Sequence[Record]) -> Iterator[tuple[Record, Record, Record]]:
    """A sealed stamp's record, that of a plain stamp and that of no stamp, of each seed that has all three."""
    marked, unmarked = ({r.seed: r for r in plain if bool(r.parameters["keys"]) == has} for has in (True, False))
    for own in sealed:
        if own.seed in marked and own.seed in unmarked:
            yield own, marked[own.seed], unmarked[own.seed]


def goals_table(
    *,
    level: Sequence[Record],
    false_claims: Sequence[Record],
    sealed: Sequence[Record],
    attacked: Sequence[Record],
    plain: Sequence[Record],
) -> Markdown:
    """What sealing has to show, what was measured, and whether that is enough; empty where it was not run."""
    costs = list(trios(sealed, plain))
    goals = {
        "No test gives a p more often than it says: no band lies above its level": told_levels(level),
        "Order drawn after the hash: 1 to 4 pictures at their places as often as by chance": told_chances(false_claims),
        "Grinding: the least p falls as 1 / seeds, slope -1 within a tenth": told_slopes(false_claims),
        f"Every letter read and p ≤ 2^-{BAR} after training, and after fine-tuning at LR/10": told_verdicts(
            sealed, ("trained", "finetuned")
        ),
        "The same after pruning 60 %, int8, and every rewriting that keeps the function": told_verdicts(attacked),
        "Accuracy at most 0.3 points under that of the twin without a stamp": told_accuracy(costs),
        "Hardening takes at most twice the steps of a plain stamp": told_steps(costs),
    }
    words = {True: "holds", False: "FALLS"}
    return shown(
        "What has to be shown",
        (*level, *false_claims, *sealed, *attacked, *plain),
        ("goal", "measured", ""),
        ((goal, found[0], words[found[1]]) if found else (goal, "", "") for goal, found in goals.items()),
        "lll",
    )


Told = tuple[str, bool] | None
"""What was measured, and whether it is enough; None if it was not run."""


def told_levels(records: Sequence[Record]) -> Told:
    """How many bands do not lie above their level."""
    found = {
        f"{name} at {level:g}": band(reached(ps, level), len(ps))[0] <= level
        for name, ps in level_tests(records).items()
        for level in LEVELS
    }
    off = [name for name, fits in found.items() if not fits]
    told = f"{len(found) - len(off)} of {len(found)} bands" + "".join(f"; not {name}" for name in off)
    return (told, not off) if found else None


def told_chances(records: Sequence[Record]) -> Told:
    """How many bands hold what chance gives."""
    found = []
    for name in strangers(records[0]) if records else ():
        counts = pooled(records, f"matched/{name}")
        for least in range(1, 5):
            low, high = band(int((counts >= least).sum()), len(counts))
            found.append(low <= places_by_chance(least, len(records[0].arrays["claimed"])) <= high)
    return (f"{sum(found)} of {len(found)} bands hold chance", all(found)) if found else None


def told_slopes(records: Sequence[Record]) -> Told:
    """The slope of grinding the order, whose p is as good as continuous."""
    ps = pooled(records, "order/ground")
    if len(ps) < FEW**2:
        return None
    value = slope(ps)
    return f"{value:.2f}", abs(value + 1) <= 0.1


def told_verdicts(records: Sequence[Record], stages: Sequence[str] = ()) -> Told:
    """The fewest letters right and the greatest p."""
    found = [record.results[stage] for record in records for stage in stages or ends(record)]
    if not found:
        return None
    least, worst = min(f["letters right"] for f in found), max(f["p"] for f in found)
    told = f"{least} of {found[0]['letters']} letters, p ≤ {worst:.1e}, {len(records)} seeds"
    return told, least == found[0]["letters"] and worst <= MATCH


def told_accuracy(costs: Sequence[tuple[Record, Record, Record]]) -> Told:
    """Points of accuracy that each seed gains on its twin without a stamp."""
    points = [
        100 * (own.results["trained"]["accuracy"] - twin.results["trained"]["accuracy"]) for own, _, twin in costs
    ]
    return (", ".join(f"{p:+.2f}" for p in points), min(points) >= -0.3) if points else None


def told_steps(costs: Sequence[tuple[Record, Record, Record]]) -> Told:
    """Steps of hardening, as a multiple of those of the plain stamp, of each seed."""
    ratios = [own.results["hardened"]["steps"] / plain.results["hardened"]["steps"] for own, plain, _ in costs]
    return (", ".join(f"{ratio:.2f}" for ratio in ratios), max(ratios) <= 2) if ratios else None
