"""Run a notebook in a profile and keep the result, unless that very result is there already.

    python notebooks/execute.py notebooks/01-hardening.ipynb --profile quick

The executed notebook goes to ``artifacts/<profile>/``. Beside the finished one, a run that fails leaves
``<name>.failed.ipynb``, with the error at the cell that raised it. With `$CLEARSTAMP_RECORDED` set it shows what is on
record, and no experiment is run.
"""

import argparse
import ast
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # "python3" is this environment's kernel, not one of the user's

import nbformat
import papermill

from clearstamp import dependencies, experiments, records
from clearstamp.errors import ClearStampError, RecordError

ROOT = Path(__file__).resolve().parent.parent


def execute(notebook: Path, profile: str, parameters: Mapping[str, Any] | None = None) -> bool:
    """Run `notebook` in `profile`, in the repository's root; False if its result was up to date.

    Raises `RecordError` for an unknown profile or parameter before anything runs, and if a cell of the notebook fails.
    """
    notebook = notebook.resolve()
    with chdir(ROOT):
        given = {"profile": profile} | dict(parameters or {})
        mark = fingerprint(notebook, profile, given)
        check_parameters(notebook, given)
        finished = records.artifacts().resolve() / profile / notebook.name
        if up_to_date(finished, profile, mark):
            return False
        partial, failed = (finished.with_suffix(f".{state}.ipynb") for state in ("partial", "failed"))
        finished.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        os.environ.pop("MPLBACKEND", None)  # figures go into the notebook, whatever backend the shell asks for
        try:
            executed = papermill.execute_notebook(
                notebook, partial, given, kernel_name="python3", language="python", stderr_file=sys.stderr
            )
        except Exception as error:
            if partial.exists():
                partial.replace(failed)
            raise RecordError(
                f"{notebook.name} failed in profile {profile!r}",
                got=f"{type(error).__name__}: {error}",
                where=failed,
                remedy="look at its last cell; what it finished before is kept, so a new run goes on from there",
            ) from error
        tidy(executed, notebook)
        executed.metadata["clearstamp"] = {"fingerprint": mark, "records": list(record_files(profile))}
        nbformat.write(executed, partial)
        partial.replace(finished)
        failed.unlink(missing_ok=True)
        return True


def fingerprint(notebook: Path, profile: str, parameters: Mapping[str, Any]) -> str:
    """sha256 of what decides a notebook's result: its cells, its parameters, what the profile means, the library.

    Where nothing is run, also of the records, which are all that it shows.
    """
    if not notebook.is_file():
        raise RecordError("no such notebook", got=notebook)
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in nbformat.read(notebook, as_version=4).cells]
    only_recorded = bool(os.environ.get("CLEARSTAMP_RECORDED"))
    shown = [path.read_text(encoding="utf-8") for path in record_files(profile).values()] if only_recorded else None
    content = [cells, parameters, repr(experiments.profile(profile)), shown, dependencies.library_digest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Raise `RecordError` for a parameter that the notebook does not have: papermill would only warn."""
    known = papermill.inspect_notebook(notebook)
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise RecordError(
            "unknown notebook parameter",
            got=", ".join(unknown),
            expected=", ".join(known) or "none: no cell is tagged `parameters`",
            where=notebook.name,
        )


def up_to_date(finished: Path, profile: str, mark: str) -> bool:
    """Is there a result of this very content, with every record that was there when it was made?"""
    if not finished.is_file():
        return False
    about = nbformat.read(finished, as_version=4).metadata.get("clearstamp", {})
    return about.get("fingerprint") == mark and set(about["records"]) <= record_files(profile).keys()


def record_files(profile: str) -> dict[str, Path]:
    """Every record of a profile, by name."""
    return {path.stem: path for path in sorted(records.folder(profile).glob("*.json"))}


def tidy(executed: nbformat.NotebookNode, notebook: Path) -> None:
    """Drop the progress bars, which the terminal has shown, and this machine's paths."""
    executed.metadata["papermill"] |= {"input_path": notebook.name, "output_path": notebook.name}
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def value(text: str) -> Any:
    """A Python literal, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", default="tiny", help="tiny, quick or paper")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    options = parser.parse_args(arguments)
    label = f"{options.notebook.stem}  {options.profile}"
    try:
        ran = execute(options.notebook, options.profile, {name: value(text) for name, text in options.p})
    except ClearStampError as error:
        print(f"{label}  {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{label}  interrupted; a new run goes on from the records that are there", file=sys.stderr)
        return 130
    print(f"{label}  {'done' if ran else 'up to date'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
