"""The paper's data sets and networks, by name."""

from clearstamp.zoo.datasets import DataSet, load
from clearstamp.zoo.networks import build

__all__ = ["DataSet", "build", "load"]
