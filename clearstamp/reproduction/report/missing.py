"""What was not run, and what it would take."""

from IPython.display import Markdown

from clearstamp.reproduction import plan as plans
from clearstamp.reproduction.experiments import unmade
from clearstamp.reproduction.lifecycle import LifeCycle
from clearstamp.reproduction.plan import Step
from clearstamp.reproduction.report.stages import in_words
from clearstamp.reproduction.report.tables import shown


def missing_table(chapter: str, profile: str) -> Markdown:
    """One line a life cycle of a chapter that has no record: the hours of one core that it would take, each seed.

    They are not known where nothing alike was recorded, and where the images are missing.
    """
    found: dict[str, list[Step]] = {}
    for step in plans.make(profile, [chapter]).of(chapter):
        if step.record is None and isinstance(step.experiment, LifeCycle):
            found.setdefault(in_words(unmade(step.settings, step.seed)), []).append(step)
    if not found:
        return Markdown("No life cycle of this chapter is left to run.")
    rows = [(words, str(len(of)), hours(of[0])) for words, of in found.items()]
    return shown("What is left to run", (), ("model", "seeds", "hours of one core, each"), rows, "lrr")


def hours(step: Step) -> str:
    """How long a step takes, if that is known."""
    if step.seconds is None:
        return "not known"
    return f"{'about ' * step.estimated}{step.seconds / 3600:.1f}"
