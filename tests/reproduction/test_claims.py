import pytest

from clearstamp.errors import RecordError
from clearstamp.reproduction import claims, records
from clearstamp.reproduction.claims import Claim
from clearstamp.reproduction.records import Record, Stage
from tests.tables import compact


def claim(**changes) -> Claim:
    about = {
        "id": "C1",
        "claim": "it shows",
        "where": "Table 2",
        "notebook": "01-hardening",
        "experiment": "one-{readout}",
        "moment": "trained",
        "metric": "ssim",
        "paper": 0.9,
        "verdict": "least",
        "tolerance": 0.02,
        "reason": "spread",
    }
    return Claim(**(about | changes))


def record(readout: str, seed: int, ssim: float, profile: str = "paper") -> Record:
    stages = [Stage(label="trained", moment="trained", scores={"ssim": ssim})]
    about = {"kind": "LifeCycle", "version": 1, "parameters": {}, "data": {"digits": {}}}
    return Record(experiment=f"one-{readout}", profile=profile, seed=seed, stages=stages, **about)


@pytest.mark.parametrize(
    ("verdict", "value", "holds"),
    [
        ("least", 0.99, True),
        ("least", 0.881, True),
        ("least", 0.87, False),
        ("most", 0.10, True),
        ("most", 0.919, True),
        ("most", 0.93, False),
        ("near", 0.91, True),
        ("near", 0.99, False),
    ],
)
def test_a_verdict_is_the_tolerance_of_its_claim(verdict, value, holds):
    assert claim(verdict=verdict).holds(value) is holds


def test_a_row_shows_mean_and_range_and_judges_the_published_readout():
    (row,) = claims.judge([claim()], [record("paper", 0, 0.90), record("paper", 1, 0.94), record("adjoint", 0, 0.1)])
    assert row.cell("published") == "0.920 (0.900 to 0.940)"
    assert row.cell("published", ".1%") == "92.0% (90.0% to 94.0%)"
    assert row.cell("adjoint readout") == "0.100"
    assert row.verdict == "holds" and row.holds("published") and row.holds("adjoint readout") is False


def test_the_default_is_judged_beside_what_was_published():
    (row,) = claims.judge([claim()], [record("paper", 0, 0.5), record("default-adjoint", 0, 0.9)])
    assert (row.cell("default"), row.holds("default"), row.verdict) == ("0.900", True, "FALLS")


@pytest.mark.parametrize(
    ("accuracy", "ssim", "verdict"),
    [(0.7, 0.9, "holds"), (0.9, 0.9, "open: less was erased"), (0.9, 0.1, "FALLS"), (0.9, 0.14, "FALLS")],
)
def test_a_price_says_nothing_as_long_as_less_was_erased(accuracy, ssim, verdict):
    price = claim(id="C1", metric="accuracy", paper=0.7, verdict="most", beside="C2")
    erased = claim(id="C2", paper=0.1, tolerance=0.05)
    made = record("paper", 0, ssim)
    made.stages[0].scores["accuracy"] = accuracy
    row, _ = claims.judge([price, erased], [made])
    assert row.verdict == verdict
    assert row.holds("published") is {"holds": True, "FALLS": False}.get(verdict)


def test_every_price_names_what_was_erased_for_it():
    by_id = {entry.id: entry for entry in claims.load()}
    prices = [entry for entry in by_id.values() if entry.verdict == "most" and entry.experiment.startswith("erasure")]
    assert len(prices) == 17
    for price in prices:
        erased = by_id[price.beside]
        assert erased.metric.startswith("ssim") and erased.notebook == price.notebook
        assert (erased.experiment, erased.attack, erased.step) == (price.experiment, price.attack, price.step)


def test_what_was_not_run_is_an_empty_cell():
    (row,) = claims.judge([claim()], [])
    assert [row.cell(embedding) for embedding in claims.EMBEDDINGS] == ["", "", ""] and row.verdict == ""
    assert row.holds("default") is None
    assert compact(claims.table([row])).splitlines()[-1] == "| C1 | it shows (Table 2) | 0.900 |  |  |  |  |"


def test_a_falling_claim_says_so_in_the_plain_table():
    rows = claims.judge([claim()], [record("paper", 0, 0.5)])
    assert "FALLS" in claims.table(rows, "plain")


@pytest.mark.parametrize(("profile", "verdict"), [("paper", "FALLS"), ("quick", "FALLS, reduced scale (digits)")])
def test_a_verdict_below_the_paper_s_scale_is_marked(profile, verdict):
    (row,) = claims.judge([claim()], [record("paper", 0, 0.5, profile)])
    assert row.verdict == verdict


def test_a_claim_about_a_number_that_no_record_holds_is_an_error():
    with pytest.raises(RecordError, match="C1"):
        claims.judge([claim(metric="colour")], [record("paper", 0, 0.5)])


def test_every_claim_of_the_file_names_a_notebook_and_a_reason():
    for entry in claims.load():
        assert entry.reason
        assert entry.verdict in ("near", "least", "most")
        assert (records.PACKAGE.parent / "notebooks" / f"{entry.notebook}.ipynb").is_file()


@pytest.mark.parametrize("text", ["- id: C1", "[", "- {id: C1, colour: red}"])
def test_a_bad_claims_file_is_an_error(tmp_path, text):
    (tmp_path / "claims.yml").write_text(text)
    with pytest.raises(RecordError, match="not a claims file"):
        claims.load(tmp_path / "claims.yml")


def test_an_id_given_twice_is_an_error(tmp_path):
    block = claims.FILE.read_text().split("\n\n")[0]
    (tmp_path / "claims.yml").write_text(f"{block}\n\n{block}\n".replace("&chance ", ""))
    with pytest.raises(RecordError, match="C01"):
        claims.load(tmp_path / "claims.yml")
