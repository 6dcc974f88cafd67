import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clearstamp.attacks import Erasure, Pruning
from clearstamp.errors import RecordError
from clearstamp.pictures import develop, montage
from clearstamp.reproduction import report
from clearstamp.reproduction.campaigns import campaigns
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.lifecycle import Fingerprint, LifeCycle, Scheduled, Trial
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.registry import OURS, PAPER, by_recipe, table4
from clearstamp.reproduction.report import Slider, by_model
from clearstamp.reproduction.report.stages import in_words
from clearstamp.reproduction.runtime import Cost
from clearstamp.training.schedules import ADMM, Alternating, AugmentedLagrangian, Joint
from clearstamp.transpose import transpose
from clearstamp.zoo.networks import build
from tests.books import record
from tests.tables import compact

FRAMES = [np.full((4, 6), value, np.uint8) for value in (0, 128, 255)]
LABELS = ["step 0", "step 10", "step 20 </script>"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield {
            "marked": run_all([LifeCycle(name="11-keys-paper", model="fc")], "tiny"),
            "unmarked": run_all([LifeCycle(name="unmarked", model="fc", keys=0)], "tiny"),
        }


def fragment(slider: Slider) -> str:
    return slider._repr_mimebundle_()[0]["text/html"]


def test_a_slider_is_one_self_contained_fragment_and_the_same_every_time():
    slider = Slider(FRAMES, LABELS, "step", "a stamp")
    assert fragment(slider) == fragment(Slider(FRAMES, LABELS, "step", "a stamp"))
    assert fragment(slider) != fragment(Slider(FRAMES[::-1], LABELS, "step", "a stamp"))
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", fragment(slider))
    assert fragment(slider).count("</script>") == 2, "a label must not end the script element"
    assert 'type="range" min="0" max="2"' in fragment(slider)


def test_a_slider_without_frames_or_with_too_few_labels_is_an_error():
    for frames, labels in (([], []), (FRAMES, LABELS[:2])):
        with pytest.raises(RecordError, match="frames and labels"):
            Slider(frames, labels, "step", "a stamp")


def test_a_slider_opens_at_its_start_also_where_scripts_are_stripped():
    slider = Slider(FRAMES, LABELS, "step", "a stamp", rows=("secret", "<raw>"), start=1)
    shown, _, script = fragment(slider).partition("<script")
    assert 'value="1"' in shown and "a stamp, step 10" in shown and ">step 10</output>" in shown
    picture = re.search(r'src="data:image/webp;base64,([^"]+)"', shown)[1]
    assert picture == base64.b64encode(report.sliders.webp(FRAMES[1])).decode()
    assert "<div>secret</div><div>&lt;raw&gt;</div>" in shown
    assert '"start": 1' in script


@pytest.mark.parametrize("start", [-1, 3])
def test_a_slider_does_not_open_where_it_has_no_frame(start):
    with pytest.raises(RecordError, match=f"no such position; got: {start}; expected: 0 to 2"):
        Slider(FRAMES, LABELS, "step", "a stamp", start=start)


def test_a_slider_s_pictures_are_those_given_in_64_levels():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(report.sliders.webp(pixels))))
    assert shown.shape == pixels.shape and abs(shown.astype(int) - pixels).max() <= 4


def test_a_frame_shows_the_secrets_of_the_first_keys_the_raw_signal_and_the_developed_one():
    secrets, images = torch.rand(11, 1, 28, 28), torch.rand(9, 1, 28, 28)
    rows = np.split(report.sliders.frame(secrets, images), [28, 30, 58, 60])[::2]
    for row, expected in zip(rows, (secrets[:6], images[:6], develop(images[:6])), strict=True):
        assert (row == montage(expected)).all()


def test_a_montage_places_images_row_by_row():
    sheet = montage(torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3), torch.full((1, 3, 3), 2.0)]), columns=2)
    assert sheet.shape == (8, 8)
    assert (sheet[:3, :3] == 0).all()
    assert (sheet[:3, 5:] == 255).all()
    assert montage(torch.zeros(2, 3, 4, 4)).shape == (4, 10, 3)


def test_the_hardening_slider_shows_every_kept_step_with_its_score(made):
    slider = report.hardening_slider(made["marked"][0])
    assert len(slider.frames) == len(made["marked"][0].arrays["hardening/steps"])
    assert slider.labels[0].startswith("step 0, mean SSIM") and "accuracy" not in slider.labels[0]
    assert f"accuracy before any training {made['marked'][0].results['hardened']['accuracy']:.3f}" in slider.labels[-1]


def test_the_hardening_slider_opens_at_its_end(made):
    slider = report.hardening_slider(made["marked"][0])
    assert slider.start == len(slider.frames) - 1 > 0
    assert slider.rows == ("secret", "raw", "developed")


@pytest.mark.parametrize(
    ("accuracies", "start"),
    [
        ((0.99, 0.98, 0.971, 0.969, 0.5), 2),  # growing strengths
        ((0.99, 0.5, 0.98, 0.96), 2),  # steps that spoil the model, and then repair it
        ((0.5, 0.9, 0.95), 2),
        ((0.99, 0.9), 0),
    ],
)
def test_an_attack_slider_opens_at_the_last_position_where_accuracy_holds(accuracies, start):
    stages = ("before", *(f"{strength} %" for strength in range(1, len(accuracies))))
    made = record("pruning-paper", stages)
    for stage, accuracy in zip(made.stages, accuracies, strict=True):
        stage.scores["accuracy"] = accuracy
    slider = report.attack_slider(made)
    assert slider.start == start
    assert slider.rows == ("secret", "raw", "developed")
    assert (slider.frames[start][:9] == montage(made.arrays["secrets"])).all()


def test_figures_show_every_stage(made):
    titles = [axis.get_title(loc="left") for axis in report.stamp_figure(made["marked"][0]).axes]
    assert titles[0] == "secret"
    assert len(titles) == 7
    assert [len(axis.lines) for axis in report.hardening_figure(made["marked"]).axes] == [1, 1, 1]


def test_tables_hold_the_records_numbers(made):
    marked, unmarked = made["marked"], made["unmarked"]
    ssim = marked[0].results["trained"]["ssim"]
    assert f"{ssim:.3f}" in report.score_table(marked, "trained").data
    difference = 100 * (marked[0].results["trained"]["accuracy"] - unmarked[0].results["trained"]["accuracy"])
    assert f"{difference:+.2f}" in report.cost_table(marked, unmarked).data
    assert f"{unmarked[0].results['trained/11 keys/adjoint']['ssim']:.3f}" in report.control_table(unmarked).data
    assert f"{marked[0].results['hardened']['steps']}" in report.steps_table(marked).data
    assert f"{ssim:.3f}" in report.claims_table("02-multi-key", "tiny").data
    assert "512 train images" in report.provenance(marked).data


def test_provenance_is_a_line_and_a_toggle(made):
    (first,) = made["marked"]
    commits = [
        replace(first.provenance, commit=letter * 40, dirty=dirty) for letter, dirty in (("a", False), ("b", True))
    ]
    records = [replace(first, seed=seed, provenance=commit) for seed, commit in enumerate(commits)]
    line, toggle = report.provenance(records).data.strip().split("\n\n")
    assert line.startswith("Profile `tiny`: 2 records; data: ") and line.endswith("; seeds: 0, 1.")
    assert "\n" not in line and len(line) < 120
    assert toggle.startswith("<details") and toggle.endswith("</details>")
    assert f"<li>commits of the records: {'a' * 12}, {'b' * 12} with uncommitted changes</li>" in toggle
    assert (
        f"<li>versions: {report.tables.listed(f'{n} {v}' for n, v in first.provenance.versions.items())}</li>" in toggle
    )


def test_a_table_of_the_paper_has_its_rows_and_both_embeddings_side_by_side(made):
    default = LifeCycle(name="11-keys-default-adjoint", readout="adjoint", keys=2, **OURS)
    sides = [made["marked"][0], *run_all([default], "tiny")]
    shown = report.paper_table("Table 2", "tiny")
    head, _, *rows = compact(shown.data).splitlines()
    assert head.count("published") == head.count("default") == 2
    (row,) = (row for row in rows if row.startswith("| 11 keys, after constraint training"))
    found = [r.results["trained"] for r in sides]
    accuracies, scores = ([side[score] for side in found] for score in ("accuracy", "ssim"))
    expected = "| 89.10% | {:.2%} | {:.2%} | 0.910 | {:.3f} | {:.3f} |"
    assert row.endswith(expected.format(*accuracies, *scores))
    assert {r.name for r in (*sides, *made["unmarked"])} == set(shown.metadata["clearstamp"]["records"])
    assert [row.split(",")[0] for row in rows][:3] == ["| no stamp", "| no stamp", "| 1 key"]


def test_fingerprints_stand_beside_the_paper_s_numbers():
    names = {"11-keys": {"keys": 3}, "fc": {"model": "fc", "keys": 2}}
    rates = [Fingerprint(name=f"fingerprint-{n}-0.5", dropout=0.5, **about) for n, about in names.items()]
    found = run_all([*rates, Fingerprint(name="fingerprint-11-keys-0", keys=3)], "tiny")
    head, _, paper, without, half = compact(report.fingerprint_table(found).data).splitlines()
    assert head == "| dropout | 11 keys | three FC layers, MNIST | CNN off, evaluation | CNN off, training |"
    assert paper == "| the paper | 0.92 | 0.99 |  |  |"
    read = [tuple(r.results["hardened"][s] for s in ("ssim", "ssim_training_mode")) for r in found]
    assert half.startswith("| 0.5 | {:.3f} / {:.3f} | {:.3f} / {:.3f} |".format(*read[0], *read[1]))
    assert half.endswith("| {:.3f} | {:.3f} |".format(*(abs(value - 0.92) for value in read[0])))
    assert without.startswith("| 0 | {:.3f} / {:.3f} |  | {:.3f} |".format(*read[2], 0.92 - read[2][0]))


def test_what_lasts_is_one_line_a_setting():
    on = Trial(name="trial", model="fc", keys=2, readout="adjoint", dropout=0.2, every=2, joint=True)
    attacks = {"pruned": Pruning(amount=0.5), "erased": Erasure(steps=1)}
    lives, campaign = (run_all([e], "tiny") for e in (on, *campaigns("lasting", attacks, [on])))
    cost = run_all([Cost(name="cost-trial", subject="joint", twin="task", model="fc", rounds=2, repeats=1)], "tiny")
    tables = report.lasting_tables(lives, campaign, "developed_ssim", cost)
    heads, lines = zip(*(compact(table.data).splitlines()[::2] for table in tables), strict=True)
    assert heads == (
        "| model | accuracy | trained | fine-tuned, LR/10 | pruned | time |",
        "| model | trained | erased |",
    )
    words = "dropout 0.2, joint every 2, three FC layers, 2 keys"
    life, left = lives[0].results, campaign[0].results
    scores = [f"{found['developed_ssim']:.3f}" for found in (life["trained"], life["finetuned"], left["pruned"])]
    time = cost[0].results["cost"]["time"]
    assert lines[0] == f"| {words} | {life['trained']['accuracy']:.4f} | {' | '.join(scores)} | {time:.2f} |"
    assert lines[1] == f"| {words} | {scores[0]} | {left['erased']['developed_ssim']:.3f} |"


def test_a_price_is_told_step_by_step():
    on = LifeCycle(name="on", model="fc", keys=2, **PAPER)
    attacks = {"LR 0.1": Erasure(steps=2, looks=2, lr=0.1), "LR 0.2": Erasure(steps=1, lr=0.2)}
    found = run_all(campaigns("rates", attacks, [on]), "tiny")
    assert report.prices_table(found, tuple(attacks)).data == "*Not run in this profile.*", "three FC layers"
    told = [
        replace(
            found[0], parameters=found[0].parameters | {"on": found[0].parameters["on"] | {"model": "cnn", "keys": 11}}
        )
    ]
    head, _, *lines = compact(report.prices_table(told, tuple(attacks)).data).splitlines()
    assert head == "| step | LR 0.1 | LR 0.2 |"
    by_label = found[0].results
    pairs = [
        f"{by_label[label]['accuracy']:.3f} / {by_label[label]['ssim_attacked']:.3f}"
        for label in ("LR 0.1, step 1", "LR 0.2", "LR 0.1")
    ]
    assert lines == [f"| 1 | {pairs[0]} | {pairs[1]} |", f"| 2 | {pairs[2]} |  |"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (PAPER, "published"),
        (PAPER | {"readout": "adjoint", "keys": 1}, "published, adjoint readout, 1 key"),
        (OURS | {"readout": "adjoint"}, "default"),
        ({"dropout": 0.1, "noise": 0.015}, "dropout 0.1, alternate every 1, noise 0.015"),
        ({"until": "hardened", "lr": 1e-3}, "dropout 0, LR 0.001"),
        (PAPER | {"secrets": "icons", "optimizer": "sgd"}, "published, icons, SGD"),
        ({"keys": 0}, "no stamp"),
    ],
)
def test_a_model_is_told_in_words(made, about, words):
    experiment = LifeCycle(name="any", **about)
    told = replace(made["marked"][0], parameters=experiment.settings(PROFILES["tiny"]).parameters)
    assert in_words(told) == words
    (attacked,) = campaigns("attack", {}, [experiment])
    assert in_words(replace(told, parameters=attacked.parameters())) == words
    assert by_model([told]) == {words: [told]}


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (Joint(every=1, weight=0.01), "weighted sum, 0.01"),
        (Joint(), "joint every 3"),
        (Alternating(), "alternate every 1"),
        (AugmentedLagrangian(limit=0.1), "augmented Lagrangian, loss at most 0.1"),
        (ADMM(), "ADMM, rho 0.1"),
    ],
)
def test_a_schedule_is_told_in_words(made, by, words):
    experiment = Scheduled(name="any", by=by, readout="adjoint")
    told = replace(made["marked"][0], parameters=experiment.settings(PROFILES["tiny"]).parameters)
    assert in_words(told) == words
    (attacked,) = campaigns("attack", {}, [experiment])
    assert in_words(replace(told, parameters=attacked.parameters())) == words


def test_a_row_by_a_recipe_stands_beside_the_paper_s_numbers(made):
    (row, *_) = by_recipe()
    parameters = row.settings(PROFILES["paper"]).parameters
    told = replace(made["marked"][0], experiment=row.name, kind="Row", parameters=parameters)
    head, _, line = compact(report.recipe_table([told]).data).splitlines()
    accuracy, ssim = ([told.results[m][s] for m in ("trained", "finetuned")] for s in ("accuracy", "ssim"))
    assert head.startswith("| model | epochs | accuracy, after constraint training | accuracy, after fine-tuning")
    assert line == (
        f"| recipe, ResNet-18, CIFAR-10, adjoint readout | 3 | {accuracy[0]:.4f} (0.6287) | {accuracy[1]:.4f} (0.6874) "
        f"| {ssim[0]:.4f} (0.96) | {ssim[1]:.4f} (0.91) |"
    )


def test_rows_of_table_4_are_told_apart_where_one_set_stands_in_for_all(made):
    rows = [*table4("{name}-paper", "paper", **PAPER), *table4("{name}-adjoint", "adjoint", **PAPER)]
    rows += table4("{name}-default-adjoint", "adjoint", **OURS)
    scale = PROFILES["tiny"]
    told = [
        replace(made["marked"][0], experiment=e.name, kind="Row", parameters=e.settings(scale).parameters) for e in rows
    ]
    words = list(map(in_words, told))
    assert len(set(words)) == 30
    assert {"published, CNN, CIFAR-10", "published, CNN, GTSRB, adjoint readout", "default, ViT, CIFAR-100"} <= set(
        words
    )


def test_a_stage_of_an_experiment_s_own_has_a_table_too(made):
    own = [replace(made["marked"][0], stages=[replace(made["marked"][0].stages[1], label="control")])]
    assert report.score_table(own, "control").metadata["clearstamp"]["caption"] == "Scores in the stage control"


@pytest.mark.parametrize(
    "table",
    [
        lambda: report.score_table([], "trained"),
        lambda: report.attacks_table([]),
        lambda: report.steps_table([]),
        lambda: report.hardening_figure([]),
        lambda: report.cost_table([], []),
        lambda: report.capacity_table([]),
        lambda: report.coverage_table([]),
        lambda: report.provenance([]),
    ],
)
def test_what_was_not_run_is_said_to_be_so(table):
    assert table().data == "*Not run in this profile.*"


def test_a_marked_model_without_its_twin_has_no_cost(made):
    other = [replace(record, seed=5) for record in made["unmarked"]]
    assert "Not run" in report.cost_table(made["marked"], other).data


def test_several_seeds_are_told_with_their_spread(made):
    (record,) = made["marked"]
    both = [
        replace(
            record, seed=seed, stages=[replace(record.stages[1], scores=record.results["trained"] | {"ssim": ssim})]
        )
        for seed, ssim in enumerate((0.75, 0.5))
    ]
    told = compact(report.score_table(both, "trained").data)
    assert "| 2 | " in told and "| 0.625 ± 0.177 |" in told


def test_pictures_are_those_of_the_first_seed(made):
    (record,) = made["marked"]
    assert report.pictured([record, replace(record, seed=1, arrays={})]) == [record]


def test_a_gallery_has_a_line_of_pictures_for_each_record(made):
    (record,) = made["marked"]
    records = [record, replace(record, parameters=record.parameters | {"dropout": 0.1})]
    figure = report.gallery_figure(records)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [f"{in_words(r)}, SSIM {r.results['finetuned']['ssim']:.3f}" for r in records]


def test_a_walk_is_pictured_from_the_key_to_the_image():
    cnn = build("cnn", (1, 28, 28), 10, seed=0)
    figure = report.walk_figure(transpose(cnn, torch.zeros(1, 1, 28, 28)), torch.ones(10))
    titles = [axis.get_title() for axis in figure.axes if axis.images]
    assert titles[0] == "the key\n10" and titles[-1] == "0 (Conv2d)\n1 x 28 x 28" and len(titles) == 13
    assert figure.axes[6].images[0].get_array().shape == (4 * 8, 4 * 8), "16 of 64 channels of 7 x 7, a gap each"
