"""The paper's data sets and networks, by name, and a recipe for the deep ones."""

from clearstamp.zoo.datasets import DataSet, load
from clearstamp.zoo.networks import build
from clearstamp.zoo.recipe import Normalize, Recipe

__all__ = ["DataSet", "Normalize", "Recipe", "build", "load"]
