"""Section 5.3 of the paper: other data sets, other architectures, and a model that moves from one set to another."""

from dataclasses import dataclass, replace

from torch import nn

from clearstamp.experiments import Profile, device, load_sets
from clearstamp.lifecycle import Life, LifeCycle, fresh_model, train
from clearstamp.training import accuracy, fit
from clearstamp.units import last_layer, replace_module
from clearstamp.verification import read


@dataclass(frozen=True, kw_only=True)
class Row(LifeCycle):
    """One row of a table over data sets and networks; in the profile ``quick`` with fewer images."""

    def scaled(self, scale: Profile) -> Profile:
        scale = super().scaled(scale)
        if scale.name != "quick":
            return scale
        return replace(scale, train_images=600, test_images=500, finetune_epochs=1)


@dataclass(frozen=True, kw_only=True)
class CrossData(Row):
    """Fine-tuned on another data set, with a last layer for its classes; the marked one is put back for reading.

    The stage ``control`` is the marked last layer on a model that was never marked, trained on the first set.
    """

    onto: str

    def tune(self, life: Life) -> None:
        scale = life.scale
        sets = load_sets(scale if scale.dataset == "digits" else replace(scale, dataset=self.onto))
        own = last_layer(life.model, life.example)
        fresh = nn.Linear(own.weight.shape[1], sets.train.classes).to(device())
        replace_module(life.model, own, fresh)
        batches = sets.train.loader(self.batch_size, seed=life.seed + 1000)
        fit(life.model, batches, epochs=scale.finetune_epochs, lr=self.lr / 10)
        reached = accuracy(life.model, sets.test.loader(250))
        replace_module(life.model, fresh, own)
        life.keep("finetuned", read(life.back, life.stamp), reached)
        other = fresh_model(self, scale, life.seed + 2000)
        train(self, scale, life.seed + 2000, other, None)
        replace_module(other, last_layer(other, life.example), own)
        reading = read(life.transposed(other), life.stamp)
        life.results["control"] = reading.summary()
        life.arrays["control"] = reading.images


def row(name: str, readout: str, **about: object) -> Row:
    kind = CrossData if "onto" in about else Row
    return kind(name=f"{name}-{readout}", readout=readout, **about)  # type: ignore[arg-type]


def table4(readout: str) -> list[Row]:
    """The ten rows of the paper's Table 4 in its order.

    Learning rates, and epochs where the paper's text is silent, are this library's: 1e-3 for networks with batch norm
    and 1e-4 for those without.
    """
    narrow = {name: {"model": name, "small": f"{name}-narrow"} for name in ("resnet18", "resnet34", "vgg11", "vit")}
    deep = {"hardening_steps": 4_000, "epochs": 10, "lr": 1e-3}
    long = {"hardening_steps": 1_000, "epochs": 200}
    return [
        row("cifar10-cnn", readout, dataset="cifar10"),
        row("gtsrb-cnn", readout, dataset="gtsrb"),
        row("mnist-fc", readout, model="fc", hardening_steps=200),
        row("mnist-cnn-bn", readout, model="cnn-bn", hardening_steps=1_000),
        row("cifar10-resnet18", readout, dataset="cifar10", **narrow["resnet18"], **deep),
        row("gtsrb-resnet18", readout, dataset="gtsrb", **narrow["resnet18"], **deep),
        row("cifar10-resnet34", readout, dataset="cifar10", **narrow["resnet34"], **deep),
        row("cifar100-to-cifar10-resnet18", readout, dataset="cifar100", onto="cifar10", **narrow["resnet18"], **deep),
        row("cifar100-vgg11", readout, dataset="cifar100", **narrow["vgg11"], **long),
        row("cifar100-vit", readout, dataset="cifar100", **narrow["vit"], **long),
    ]


RESNET18 = Row(
    name="resnet18-hardening",
    readout="adjoint",
    model="resnet18",
    small="resnet18-narrow",
    dataset="cifar10",
    target=0.95,
    lr=1e-3,
    until="hardened",
)
"""How many steps a deep network takes to learn eleven keys."""
