"""Every classifier of torchvision, run backwards in both readouts."""

import pytest
import torch
from torch import nn
from torchvision import models

from clearstamp.coverage import HANDFUL, OUTPUTS, Coverage, Hardened, classifier, classifiers, cover, smallest
from clearstamp.experiments import run_all
from clearstamp.report import coverage_table, hardened_table

LARGE = 2e8  # parameters above which float64 takes more memory than a laptop has


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path))


def test_classifiers_are_all_of_torchvision_s():
    assert set(classifiers()) == set(models.list_models(module=models)) and len(classifiers()) >= 80


@pytest.mark.parametrize("name", classifiers())
def test_every_classifier_gives_a_finite_image_and_a_gradient_in_every_weight(name):
    model = classifier(name)
    size = sum(weight.numel() for weight in model.parameters())
    dtype = (
        torch.float32 if size > LARGE else torch.float64
    )  # float32 loses gradients of 1e-45 and less in deep networks
    model = model.to(dtype)
    example = torch.zeros(1, 3, smallest(name), smallest(name), dtype=dtype)
    found = {readout: cover(model, example, readout) for readout in ("paper", "adjoint")}
    weights = sum(weight.dim() > 1 for weight in model.parameters())
    whole = {"reason": None, "finite": True, "weights": weights, "without gradient": 0}
    assert found == {"paper": whole, "adjoint": whole}


class Deaf(nn.Module):
    """Has a weight that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, OUTPUTS), nn.Linear(12, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


def test_cover_tells_what_is_wrong():
    example = torch.zeros(1, 3, 2, 2)
    assert cover(Deaf(), example, "adjoint") == {"reason": None, "finite": True, "weights": 2, "without gradient": 1}
    model = Deaf()
    nn.init.constant_(model.used.weight, float("inf"))
    assert cover(model, example, "adjoint")["finite"] is False
    found = cover(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.GLU()), example, "adjoint")
    assert "GLU" in found["reason"]


def test_constant_weights_are_drawn():
    head = classifier("vit_b_32").heads.head.weight
    assert head.std() > 0.01
    assert torch.equal(head, classifier("vit_b_32").heads.head.weight), "from the seed"


def test_coverage_is_recorded_and_shown():
    records = run_all([Coverage(name="coverage", networks=("squeezenet1_1",))], "tiny")
    assert "| squeezenet1_1 | 0.7 | yes, gradients in 26 of 26 weights | yes," in coverage_table(records).data
    records[0].results["squeezenet1_1/paper"]["reason"] = "a|b\nc"
    records[0].results["squeezenet1_1/adjoint"]["finite"] = False
    assert "| a/b c | the image is not finite |" in coverage_table(records).data


def test_hardening_of_a_handful_is_recorded_and_shown():
    (record,) = run_all([Hardened(name="hardened", networks=("shufflenet_v2_x0_5",))], "tiny")
    found = record.results["shufflenet_v2_x0_5"]
    assert found["steps"] == 2 and record.arrays["shufflenet_v2_x0_5"].shape == (4, 3, 32, 32)
    row = f"| shufflenet_v2_x0_5 | 2 | {found['ssim before']:.3f} | {found['ssim']:.3f} |"
    assert row in hardened_table([record]).data
    assert set(HANDFUL) <= set(classifiers())
