"""The price of removal as it is shown: of each attacker the cheapest way, over the cheapest way to train anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

import matplotlib.pyplot as plt
from IPython.display import Markdown
from matplotlib.figure import Figure

from clearstamp.reproduction.profiles import profile
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.report.exhibits import NOT_RUN, finished
from clearstamp.reproduction.report.stages import WORDS, by_model, grouped
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


def shares(records: Sequence[Record]) -> list[float]:
    """The shares of the images that attackers had, from the least on."""
    return sorted({share for record in records for share in record.parameters["shares"]})


def attackers(records: Sequence[Record]) -> list[str]:
    """The attackers, as they are declared."""
    return list(dict.fromkeys(name for record in records for name in record.parameters["attackers"]))


def price_table(records: Sequence[Record]) -> Markdown:
    """One line an embedding and share of the images: for each attacker the least steps, over those of training anew."""
    names = attackers(records)
    rows = []
    for words, made in by_model(records).items():
        found = [each for record in made for each in paid(record)]
        for share in shares(made):
            own = {name: [p for p in found if p.attacker == name and p.share == f"{share:.0%}"] for name in names}
            anew = [each.anew for each in own[names[0]]]
            rows.append((words, str(len(anew)), f"{share:.0%}", told(anew), *map(cell, own.values())))
    return shown(
        "The price of removal: optimizer steps, and the ratio to those of training anew",
        records,
        ("embedding", "seeds", "images", "anew", *names),
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
    """The ratio of each attacker, a row a network and a panel a share of the images; what never went is on top."""
    if not records:
        return Markdown(NOT_RUN)
    names, columns, networks = attackers(records), shares(records), grouped(records, network)
    top = 2 * max([1.0, *(each.price for record in records for each in paid(record) if each.price)])
    figure, axes = plt.subplots(
        *(len(networks), len(columns)),
        figsize=(3 * len(columns), 0.5 + 2.7 * len(networks)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for line, (title, own) in zip(axes, networks.items(), strict=True):
        for place, (words, made) in enumerate(by_model(own).items()):
            found = [each for record in made for each in paid(record)]
            for axis, share in zip(line, columns, strict=True):
                spots = [
                    (names.index(each.attacker) + 0.12 * place, top if each.steps is None else each.price)
                    for each in found
                    if each.share == f"{share:.0%}" and (each.steps is None or each.price is not None)
                ]
                if spots:
                    axis.scatter(*zip(*spots, strict=True), color=f"C{place}", s=18, label=words)
        for axis, share in zip(line, columns, strict=True):
            axis.axhline(1, color="grey", lw=0.8, ls="--")
            axis.set(yscale="log")
            axis.set_title(f"{title}\n{share:.0%} of the images", fontsize=9)
            axis.set_xticks(range(len(names)), names, rotation=30, fontsize=8)
        line[0].set_ylabel("steps over those of training anew", fontsize=8)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), fontsize=7, loc="outside lower center", ncols=2)
    return finished(figure, "The price of removal; the topmost were not removed", records)


def network(record: Record) -> str:
    """The network and its data set, in words."""
    on = record.parameters["on"]
    return f"{WORDS['model'](on['model'])} on {WORDS['dataset'](on['dataset'] or profile(record.profile).dataset)}"
