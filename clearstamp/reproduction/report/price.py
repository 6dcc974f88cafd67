"""The price of removal as it is shown: of each attacker the cheapest way, over the cheapest way to train anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import matplotlib.pyplot as plt
from IPython.display import Markdown
from matplotlib.figure import Figure

from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import NOT_RUN, finished
from clearstamp.reproduction.report.stages import by_model
from clearstamp.reproduction.report.tables import shown


@dataclass(frozen=True)
class Paid:
    """What one attacker with a share of the images paid on one model: optimizer steps, None for never."""

    share: str
    attacker: str
    steps: int | None
    rate: str
    anew: int | None

    @property
    def price(self) -> float | None:
        """Steps over those of training anew; None where there is no stamp removed, or no training to compare with."""
        return None if self.steps is None or self.anew is None else self.steps / self.anew


def least(record: Record, beginning: str) -> tuple[int | None, str]:
    """The fewest steps of all rates of one attacker, and that rate."""
    found = {
        label.rpartition(", LR ")[2]: scores["steps"]
        for label, scores in record.results.items()
        if label.startswith(f"{beginning}, LR ")
    }
    done = {rate: steps for rate, steps in found.items() if steps is not None}
    best = min(done, key=lambda rate: done[rate], default="")
    return (done[best], best) if done else (None, "")


def paid(record: Record) -> Iterator[Paid]:
    """What every attacker paid."""
    for share in record.parameters["shares"]:
        anew, _ = least(record, f"{share:.0%}, anew")
        for attacker in record.parameters["attackers"]:
            steps, rate = least(record, f"{share:.0%}, {attacker}")
            yield Paid(f"{share:.0%}", attacker, steps, rate, anew)


def price_table(records: Sequence[Record]) -> Markdown:
    """One line an embedding and share of the images: for each attacker the least steps, over those of training anew."""
    rows = []
    for words, made in by_model(records).items():
        found = [list(paid(record)) for record in made]
        for share in dict.fromkeys(each.share for each in found[0]):
            own = [[each for each in one if each.share == share] for one in found]
            cells = [cell([one[place] for one in own]) for place in range(len(own[0]))]
            anew = [one[0].anew for one in own]
            rows.append((words, str(len(made)), share, told(anew), *cells))
    attackers = [str(name) for name in records[0].parameters["attackers"]] if records else []
    return shown(
        "The price of removal: optimizer steps, and the ratio to those of training anew",
        records,
        ("embedding", "seeds", "images", "anew", *attackers),
        rows,
    )


def told(steps: Sequence[int | None]) -> str:
    """Numbers of steps, or that some or all of them were never enough."""
    done = [each for each in steps if each is not None]
    if not done:
        return "never"
    return f"{mean(done):,.0f}" + (f", {len(steps) - len(done)} never" if len(done) < len(steps) else "")


def cell(each: Sequence[Paid]) -> str:
    """The steps of one attacker with every seed, with the ratio where there is one."""
    prices = [one.price for one in each if one.price is not None]
    return told([one.steps for one in each]) + (f" ({mean(prices):.2f})" if prices else "")


def price_figure(records: Sequence[Record]) -> Figure | Markdown:
    """The ratio of each attacker, a panel a share of the images; a stamp that was never removed stands at the top."""
    if not records:
        return Markdown(NOT_RUN)
    models = {words: [list(paid(record)) for record in made] for words, made in by_model(records).items()}
    shares, attackers = records[0].parameters["shares"], records[0].parameters["attackers"]
    ratios = [one.price for found in models.values() for made in found for one in made if one.price]
    top = 2 * max([1.0, *ratios])
    figure, axes = plt.subplots(
        1, len(shares), figsize=(3 * len(shares), 3.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, share in zip(axes[0], shares, strict=True):
        for place, (words, found) in enumerate(models.items()):
            for made in found:
                own = [one for one in made if one.share == f"{share:.0%}"]
                heights = [top if one.steps is None else one.price for one in own]
                spots = [(i + 0.12 * place, h) for i, h in enumerate(heights) if h is not None]
                if spots:
                    axis.scatter(*zip(*spots, strict=True), color=f"C{place}", s=18, label=words)
        axis.axhline(1, color="grey", lw=0.8, ls="--")
        axis.set(yscale="log", title=f"{share:.0%} of the images")
        axis.set_xticks(range(len(attackers)), attackers, rotation=30, fontsize=8)
    axes[0, 0].set_ylabel("steps over those of training anew")
    handles = dict(zip(*reversed(axes[0, -1].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center", ncols=2)
    return finished(figure, "The price of removal; the topmost were not removed", records)
