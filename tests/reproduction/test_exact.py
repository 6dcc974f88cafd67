"""The experiments of chapter 10: interfaces that hide something, and networks without a rule."""

import pytest
import torch
from torch import Tensor, nn

from clearstamp.reproduction import report
from clearstamp.reproduction.exact import TASKS, Interface, Unruled
from clearstamp.reproduction.experiments import perform
from clearstamp.reproduction.profiles import profile
from clearstamp.reproduction.records import Record
from clearstamp.reproduction.registry import Chapter


@pytest.fixture(scope="module", autouse=True)
def artifacts(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("exact")))
        yield


class Answers(nn.Module):
    """A model that answers three logits, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[2.0, 1.0, 0.12345]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize(
    ("interface", "expected"),
    [
        (Interface(), [2.0, 1.0, 0.12345]),
        (Interface(decimals=2), [2.0, 1.0, 0.12]),
        (Interface(probabilities=True, decimals=3), [0.657, 0.242, 0.101]),
        (Interface(probabilities=True, decimals=3, top=2), [0.657, 0.242, 0.0]),
    ],
)
def test_an_interface_rounds_and_hides(interface: Interface, expected: list[float]):
    told = interface.shown(Answers())(torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(told, torch.tensor([expected]).to(told), atol=1e-6, rtol=0)


def test_an_interface_answers_in_full_precision():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    images = torch.rand(2, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        told = Interface().shown(model)(images)
    torch.testing.assert_close(told, model(images).detach(), atol=0, rtol=0)


def test_an_interface_may_be_noisy():
    ask = Interface(noise=0.1).shown(Answers())
    assert not torch.equal(ask(torch.zeros(1, 1, 8, 8)), ask(torch.zeros(1, 1, 8, 8)))


@pytest.fixture(scope="module")
def asked() -> Record:
    (record,) = Chapter("10-exact-readout", "tiny").run("queries")
    return record


def test_all_queries_of_an_open_interface_show_the_exact_picture(asked: Record):
    shares = [stage for stage in asked.stages if stage.label.startswith("logits")]
    assert [stage.scores["queries"] for stage in shares] == [78, 156, 314, 628, 1568]
    assert shares[-1].scores["exact correlation"] > 0.95
    assert shares[0].scores["exact correlation"] < shares[-1].scores["exact correlation"]


def test_queries_are_shown_along_their_number_and_along_what_is_told(asked: Record):
    along, told = (report.queries_slider(asked, along=way) for way in (True, False))
    assert len(along.frames) == 5 and along.start == 4 and "1,568 queries" in along.labels[-1]
    assert [label.partition(":")[0] for label in told.labels] == ["logits, 100%", "probabilities, top 3, 100%"]
    assert report.queries_table([asked]).data.count("\n") >= 8


def test_networks_without_a_rule_are_stamped_and_read():
    record = perform(Unruled(name="networks").settings(profile("tiny")), 0)
    assert [stage.network for stage in record.stages[::2]] == list(TASKS)
    assert len(report.networks_slider(record).frames) == 6
    assert "segmentation, trained" in report.networks_table([record]).data


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_drawn_from_a_seed(name: str):
    torch.manual_seed(3)
    one = TASKS[name].draw(5)
    torch.manual_seed(3)
    two = TASKS[name].draw(5)
    assert all(map(torch.equal, one, two)) and one[0].min() >= 0 and one[0].max() <= 1
    assert TASKS[name].model()(one[0]).argmax(1).shape == one[1].shape
