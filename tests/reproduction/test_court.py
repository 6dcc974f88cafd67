"""Seals by the hundred, verdicts in records, and what is shown of them."""

import hashlib
from dataclasses import replace
from decimal import Decimal
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from clearstamp.attacks import Pruning, SplitUnits
from clearstamp.evidence import chance
from clearstamp.evidence import seal as seals
from clearstamp.evidence.verdict import TESTS, Outcome, judge
from clearstamp.reproduction import court, report
from clearstamp.reproduction.court import UNIT, Accusation, Examination, Forgeries, Level, Sealed
from clearstamp.reproduction.experiments import run_all
from clearstamp.reproduction.profiles import PROFILES
from clearstamp.reproduction.records import Record, Stage
from clearstamp.reproduction.report import court as shown
from clearstamp.schemes.stamps import drawn_seal
from tests.tables import compact

ABOUT = {"outputs": 10, "shape": (1, 28, 28)}
ON = Sealed(name="sealed-fc", readout="adjoint", model="fc", lr=1e-3, target=0.9)


@pytest.fixture(scope="module", autouse=True)
def quickly(tmp_path_factory):
    """Seals without the brake of scrypt, and a scale of seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seals, "root", lambda seed, choices: hashlib.sha256(seed + choices).digest())
        patch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        patch.setitem(PROFILES, "tiny", replace(PROFILES["tiny"], train_images=256, test_images=60, hardening_steps=60))
        yield


@pytest.fixture(scope="module")
def life():
    return run_all([ON], "tiny")[0]


@pytest.fixture(scope="module")
def examined(life):
    attacks = {"pruning 30 %": Pruning(amount=0.3), "split": SplitUnits(share=1.0, part=20.0)}
    return run_all([Examination(name="attacked-sealed-fc", on=ON, attacks=attacks)], "tiny")[0]


def test_the_seal_of_an_experiment_follows_from_the_seed_of_its_run():
    one, same, other = (drawn_seal(seed=seed, **ABOUT) for seed in (1, 1, 2))
    assert one.commitment == same.commitment != other.commitment
    assert torch.equal(one.stamp().keys, same.stamp().keys)
    assert one.seed != seals.Seal.make(**ABOUT).seed


def test_a_verdict_stands_in_the_record_of_every_stage(life):
    for stage in ("hardened", "trained", "finetuned"):
        found = life.results[stage]
        assert found["letters"] == 44 and len(found["read"]) == 44
        assert found["p"] == pytest.approx(min(1, 2 * float(chance.binomial(found["letters right"], 44, 16))))
    assert life.results["hardened"]["verdict"] == "MATCH"
    seal = ON.seal(ON.settings(PROFILES["tiny"]), 0)
    drawn = "".join(seal.choices.alphabet[place] for place in seal.letters.reshape(-1))
    right = sum(a == b for a, b in zip(life.results["hardened"]["read"], drawn, strict=True))
    assert right == life.results["hardened"]["letters right"]


def test_the_record_s_pictures_give_its_verdict_again(life):
    seal = ON.seal(ON.settings(PROFILES["tiny"]), 0)
    torch.testing.assert_close(life.arrays["secrets"], seal.stamp().secrets, rtol=0, atol=1e-3)
    again = court.looked_at(seal, life.arrays["trained"])
    assert abs(again["letters right"] - life.results["trained"]["letters right"]) <= 1  # half precision


def test_an_examination_reads_a_model_in_every_way_that_its_seal_names(examined):
    before, split = examined.results["before"], examined.results["split"]
    assert before["verdict"] == split["verdict"] == "MATCH" and "attempt" not in before
    assert split["p"] == before["p"] and split["attempt"] == "merged units"
    assert split["ssim"] < 0.5 * before["ssim"]
    assert examined.results["pruning 30 %"]["attempt"] == "as is"


def test_p_is_kept_as_a_whole_number_rounded_up():
    held = court.packed([Decimal(1), Decimal("1e-16"), Decimal("2.0000000000000001e-3")])
    assert held.dtype == torch.int64
    assert held.tolist() == [UNIT, 1, 2 * 10**12 + 1]


def test_every_test_has_a_p_on_every_model_and_flat_pictures_have_the_worst():
    made = Level(name="level", models=8)
    first, second = run_all([made], "tiny", (0, 1))
    assert len(first.arrays) == 8
    for name, ps in first.arrays.items():
        assert ps.shape == (8,) and ps.dtype == torch.int64 and (ps > 0).all() and (ps <= UNIT).all()
        assert not torch.equal(ps, second.arrays[name]) or "flat" in name
    assert (first.arrays["letters, flat"] == UNIT).all() and (first.arrays["order, flat"] == UNIT).all()


def test_whoever_always_says_a_is_right_as_often_as_a_is_drawn():
    seal = drawn_seal(seed=4, **ABOUT)
    level = Level(name="level")
    flat = np.full((11, 1, 28, 28), 9, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(court, "look", lambda back, stamp: flat)
        patch.setitem(TESTS, "order", lambda *_: (Decimal(1),))
        patch.setitem(TESTS, "bits", lambda *_: (Decimal(1),))
        found = dict(level.ps(None, seal, seal))
    right = int((seal.letters == seal.choices.alphabet.index("A")).sum())
    assert 0 < right < 44 and found["letters, always A"] == chance.binomial(right, 44, 16)


@pytest.fixture(scope="module")
def false_claims():
    return run_all([Accusation(name="false-claim", strangers=("fc",), seals=6)], "tiny", (0, 1))


def test_a_false_claim_is_read_where_nothing_was_drawn_and_not_where_it_was(false_claims):
    chosen, dated = (false_claims[0].results[f"{protocol}/fc"] for protocol in ("chosen", "dated"))
    assert chosen["matched"] == chosen["pictures"] == 10 and chosen["correlation"] > 0.99
    assert dated["matched"] >= 8 and dated["p"] < 1e-5
    first, second = (record.arrays["order/fc"] for record in false_claims)
    assert len(first) == 6 and not set(first.tolist()) & set(second.tolist()), "the same seals twice"
    assert min(first.min(), second.min()) > UNIT / 1000
    assert false_claims[0].results == false_claims[1].results, "claim and models are the same for every seed"


def test_forgeries_are_told_from_genuine_stamps_by_the_seal_alone():
    (record,) = run_all([Forgeries(name="forgeries", owners=1, innocents=1, tries=2)], "tiny")
    found = {name: values for name, values in record.arrays.items() if values.dim() == 1}
    assert len(found["genuine/SSIM"]) == 10 and all(
        len(found[f"{kind}/SSIM"]) == 2 for kind in ("keys", "head", "copy")
    )
    assert found["copy/correlation"].min() > found["genuine/correlation"].max()
    assert max(found[f"{kind}/sealed test"].max() for kind in ("keys", "head", "copy")) < 3
    assert found["genuine/sealed test"][0] > 15


def test_a_model_with_a_layer_put_back_is_no_evidence():
    seal = drawn_seal(seed=4, **ABOUT)
    verdict = judge(seal, seal.secrets())
    assert court.evidence(verdict) > 50
    assert court.evidence(replace(verdict, outcome=Outcome.SUPPORTS)) == 0


# ------------------------------------------------------------------------------------------------------ what is shown


def test_pictures_at_their_places_by_chance_are_counted_over_all_orders():
    for least in range(6):
        share = np.mean([sum(a == b for a, b in enumerate(order)) >= least for order in permutations(range(5))])
        assert shown.places_by_chance(least, 5) == pytest.approx(share)


def test_the_best_of_n_seeds_is_the_mean_over_all_choices_of_n():
    draw = np.random.default_rng(0)
    own, on = draw.integers(1, UNIT, 10), draw.integers(1, UNIT, 10)
    sizes, means = shown.ground(own, on)
    assert sizes == [1, 2, 5, 10]
    for size, mean in zip(sizes, means, strict=True):
        best = [min(chosen, key=lambda i: own[i]) for chosen in combinations(range(10), size)]
        assert mean == pytest.approx(np.mean(on[best]) / UNIT)


def test_even_p_fall_with_slope_minus_one():
    assert shown.slope(np.arange(1, 1001) * (UNIT // 1001)) == pytest.approx(-1, abs=1e-3)
    assert shown.slope(np.full(1000, UNIT)) == pytest.approx(0)


def record_of(**arrays) -> Record:
    about = {"experiment": "level", "kind": "Level", "version": 1, "profile": "tiny", "parameters": {}, "seed": 0}
    return Record(**about, stages=[Stage(label="some", scores={})], arrays=arrays)


def test_the_level_s_table_counts_each_p_up_to_the_level_itself():
    ps = torch.tensor([UNIT // 1000, UNIT // 100, UNIT // 100 + 1, UNIT])
    (line,) = [row for row in compact(report.level_table([record_of(order=ps)]).data).splitlines() if "order" in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cell.split(" ")[0] for cell in cells[2:]] == ["0.750", "0.750", "0.750", "0.500", "0.250", "0.250"]
    low, high = shown.band(0, 100)
    assert low == 0 and high == pytest.approx(1 - 0.005 ** (1 / 100))


def test_a_test_that_gives_small_p_too_often_falls():
    even = torch.arange(1, 1001) * (UNIT // 1000)
    assert shown.told_levels([record_of(good=even)]) == ("6 of 6 bands", True)
    told, holds = shown.told_levels([record_of(good=even, bad=even * 2 // 3)])
    assert not holds and "not bad at 0.1" in told and "good" not in told


def test_goals_are_empty_where_nothing_was_run_and_judged_where_it_was(life, examined, false_claims):
    nothing = {"level": [], "false_claims": [], "sealed": [], "attacked": [], "plain": []}
    for row in compact(report.goals_table(**nothing).data).splitlines()[2:]:
        assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["", ""]
    whole = report.goals_table(
        **nothing | {"sealed": [life], "attacked": [examined], "false_claims": false_claims}
    ).data
    assert whole.count("44 letters") == 2 and "bands hold chance" in whole


def test_the_slider_says_pictures_letters_and_p_together(examined):
    slider = report.verdict_slider(examined)
    assert len(slider.frames) == 3
    read, p = examined.results["before"]["read"], examined.results["before"]["p"]
    assert (
        slider.labels[0].startswith(f"before: read {read[:4]} {read[4:8]} ")
        and f"p = {p:.1e}, MATCH" in slider.labels[0]
    )
    assert "sealed" in slider.alt


def test_tables_and_figures_hold_what_the_records_do(life, examined, false_claims):
    table = compact(report.verdicts_table([examined]).data)
    assert "merged units" in table and "pruning 30 %" in table
    assert len(report.power_figure([examined]).axes) >= 2
    assert len(report.grinding_figure(false_claims).axes) == 1
    assert "by chance" in report.matches_table(false_claims).data
    assert report.protocols_table(false_claims).data.count("drawn") == 1
    for empty in (report.level_figure, report.grinding_figure, report.power_figure, report.roc_figure):
        assert empty([]).data == report.exhibits.NOT_RUN
