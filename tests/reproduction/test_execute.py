"""The runner of the notebooks: what it refuses, when it runs again, what a failure leaves."""

import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from clearstamp.errors import RecordError
from clearstamp.reproduction import records

sys.path.append(str(Path(__file__).parents[2] / "notebooks"))
import execute as runner

BODY = """\
import sys
from pathlib import Path
print(profile, count)
print("noise", file=sys.stderr)
(sys.executable, str(Path.cwd()))"""


@pytest.fixture(autouse=True)
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of artifacts of each test's own."""
    monkeypatch.setenv("CLEARSTAMP_ARTIFACTS", str(tmp_path / "artifacts"))
    return tmp_path / "artifacts" / "tiny"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write(tmp_path / "small.ipynb", BODY)


def write(path: Path, body: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell('profile = "tiny"\ncount = 1', metadata={"tags": ["parameters"]}, id="parameters"),
        nbformat.v4.new_code_cell(body, id="body"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_misspelt_parameter_is_an_error_that_lists_the_known_ones(notebook: Path, artifacts: Path):
    with pytest.raises(RecordError, match=r"unknown notebook parameter; got: cuont; expected: profile, count"):
        runner.execute(notebook, "tiny", {"cuont": 2})
    assert not artifacts.exists()


def test_unknown_profile_is_an_error(notebook: Path):
    with pytest.raises(RecordError, match="unknown profile; got: 'huge'; expected: 'tiny' or 'quick' or 'paper'"):
        runner.execute(notebook, "huge")


def test_missing_notebook_is_an_error(tmp_path: Path):
    with pytest.raises(RecordError, match="no such notebook"):
        runner.execute(tmp_path / "none.ipynb", "tiny")


def test_command_line_says_what_was_wrong(notebook: Path, capsys: pytest.CaptureFixture[str]):
    assert runner.main([str(notebook), "--profile", "tiny", "-p", "cuont", "2"]) == 1
    assert "expected: profile, count" in capsys.readouterr().err


def test_runs_once_then_only_after_a_change(notebook: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    assert runner.execute(notebook, "tiny")
    assert not runner.execute(notebook, "tiny")
    monkeypatch.setattr(runner.papermill, "execute_notebook", lambda source, *args, **kwargs: fake_run(source))

    assert runner.execute(notebook, "tiny", {"count": 2}), "parameters changed"
    assert not runner.execute(notebook, "tiny", {"count": 2})

    write(notebook, BODY + "\n")
    assert runner.execute(notebook, "tiny"), "source changed"
    assert not runner.execute(notebook, "tiny")

    monkeypatch.setattr(records, "PACKAGE", artifacts)
    assert runner.execute(notebook, "tiny"), "library changed"
    assert not runner.execute(notebook, "tiny")


def fake_run(source: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata["papermill"] = {}
    return notebook


def test_result_has_the_output_but_neither_noise_nor_paths(
    notebook: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
):
    runner.execute(notebook, "tiny", {"count": 7})
    assert capsys.readouterr() == ("", "")
    executed = nbformat.read(artifacts / "small.ipynb", as_version=4)
    stream, result = executed.cells[-1].outputs
    assert stream.text == "tiny 7\n"
    assert result.data["text/plain"] == repr((sys.executable, str(runner.ROOT)))
    assert str(artifacts) not in nbformat.writes(nbformat.from_dict({**executed, "cells": []}))
    assert [path.name for path in artifacts.iterdir()] == ["small.ipynb"]


def test_figures_are_kept_whatever_the_shells_backend(notebook: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    write(notebook, "import matplotlib.pyplot as plt\nfigure, axis = plt.subplots()\nplt.close(figure)\nfigure")
    runner.execute(notebook, "tiny")
    (result,) = nbformat.read(artifacts / "small.ipynb", as_version=4).cells[-1].outputs
    assert "image/png" in result.data


def test_failure_leaves_no_finished_notebook(notebook: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]):
    write(notebook, "kind = KeyError\nraise kind('oh dear')")
    assert runner.main([str(notebook), "--profile", "tiny"]) == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert "got: KeyError: 'oh dear'; where: the cell that begins with `kind = KeyError`" in message
    assert "small.failed.ipynb" in message
    assert [path.name for path in artifacts.iterdir()] == ["small.failed.ipynb"]

    write(notebook, BODY)
    assert runner.main([str(notebook), "--profile", "tiny"]) == 0
    assert [path.name for path in artifacts.iterdir()] == ["small.ipynb"]


@pytest.mark.parametrize(("text", "expected"), [("1e-3", 1e-3), ("adjoint", "adjoint"), ("(0, 1)", (0, 1))])
def test_values_of_the_command_line(text: str, expected: object):
    assert runner.value(text) == expected


def test_a_chapter_is_shown_anew_when_one_of_its_records_changed(artifacts: Path):
    path, folder = runner.ROOT / "notebooks" / "01-hardening.ipynb", artifacts / "records"
    folder.mkdir(parents=True)
    assert runner.shown(path, "tiny") == {}
    (folder / "unmarked-seed0.json").write_text("{}")
    first = runner.shown(path, "tiny")
    assert first.keys() == {"unmarked-seed0"}
    (folder / "another-seed0.json").write_text("{}")
    assert runner.shown(path, "tiny") == first, "which it does not show"
    (folder / "unmarked-seed0.json").write_text('{"seed": 0}')
    assert runner.shown(path, "tiny") != first


@pytest.fixture(scope="module")
def shell() -> Iterator[InteractiveShell]:
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize("name", sorted(path.stem for path in (runner.ROOT / "notebooks").glob("0[1-9]-*.ipynb")))
def test_a_notebook_shows_what_is_on_record_and_says_what_is_not(
    name: str, artifacts: Path, monkeypatch: pytest.MonkeyPatch, shell: InteractiveShell
):
    monkeypatch.setenv("CLEARSTAMP_RECORDED", "1")
    notebook = nbformat.read(runner.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    told = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        with capture_output() as shown:
            done = shell.run_cell(cell.source)
        done.raise_error()
        told += [getattr(done.result, "data", ""), *(output.data.get("text/markdown", "") for output in shown.outputs)]
    assert "*Not run in this profile.*" in told
    assert not artifacts.exists()
