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
from pathlib import Path
from typing import Any

os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # "python3" is this environment's kernel, not one of the user's

import nbformat
import papermill

from clearstamp.errors import ClearStampError, RecordError
from clearstamp.reproduction import profiles, records
from clearstamp.reproduction.registry import CHAPTERS, Chapter

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
"""For the kernel: no warnings of its debugger."""


def execute(notebook: Path, profile: str, parameters: Mapping[str, Any] | None = None) -> bool:
    """Run `notebook` in `profile`, in the repository's root; False if its result was up to date.

    Raises `RecordError` for an unknown profile or parameter before anything runs, and if a cell of the notebook fails.
    """
    notebook = notebook.resolve()
    given = {"profile": profile} | dict(parameters or {})
    if up_to_date(notebook, profile, given):
        return False
    check_parameters(notebook, given)
    finished = result(notebook, profile)
    partial, failed = (finished.with_suffix(f".{state}.ipynb") for state in ("partial", "failed"))
    finished.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    os.environ.pop("MPLBACKEND", None)  # figures go into the notebook, whatever backend the shell asks for
    os.environ.update(QUIET)
    try:
        executed = papermill.execute_notebook(
            notebook,
            partial,
            given,
            cwd=ROOT,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # no word of TCP: the kernel listens on this machine
        )
    except Exception as error:
        if partial.exists():
            partial.replace(failed)
        lines = [line for line in getattr(error, "source", "").splitlines() if line.strip() and line.strip()[0] != "#"]
        raise RecordError(
            f"{notebook.name} failed in profile {profile!r}",
            got=f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}",
            where=f"the cell that begins with `{lines[0]}`" if lines else None,
            remedy=f"look at it in {failed}; what was finished before is kept, so a new run goes on from there",
        ) from error
    tidy(executed, notebook)
    mark = fingerprint(notebook, profile, given)
    executed.metadata["clearstamp"] = {"fingerprint": mark, "records": shown(notebook, profile)}
    nbformat.write(executed, partial)
    partial.replace(finished)
    failed.unlink(missing_ok=True)
    return True


def result(notebook: Path, profile: str) -> Path:
    """Where the executed notebook goes."""
    return records.artifacts().resolve() / profile / notebook.name


def fingerprint(notebook: Path, profile: str, parameters: Mapping[str, Any]) -> str:
    """sha256 of what decides how records are shown: the notebook's cells, its parameters, the profile, the library."""
    if not notebook.is_file():
        raise RecordError("no such notebook", got=notebook)
    cells = [(cell.cell_type, cell.source, cell.metadata) for cell in nbformat.read(notebook, as_version=4).cells]
    content = json.dumps([cells, parameters, repr(profiles.profile(profile))], sort_keys=True, default=str)
    whole = hashlib.sha256(content.encode())
    for path in sorted(path for path in records.PACKAGE.rglob("*") if path.suffix in (".py", ".yml", ".txt")):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def shown(notebook: Path, profile: str) -> dict[str, str]:
    """sha256 of every record that a chapter shows and that is there, by its name."""
    if notebook.stem not in CHAPTERS:
        return {}
    names = sorted({records.named(e.name, seed) for e, seed in Chapter(notebook.stem, profile).declared()})
    paths = {name: records.folder(profile) / f"{name}.json" for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}


def up_to_date(notebook: Path, profile: str, parameters: Mapping[str, Any] | None = None) -> bool:
    """Is there a result of this very notebook, from the records that are there?"""
    mark, finished = (
        fingerprint(notebook, profile, {"profile": profile} | dict(parameters or {})),
        result(notebook, profile),
    )
    if not finished.is_file():
        return False
    about = nbformat.read(finished, as_version=4).metadata.get("clearstamp", {})
    return about == {"fingerprint": mark, "records": shown(notebook, profile)}


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


def tidy(executed: nbformat.NotebookNode, notebook: Path) -> None:
    """Drop what went to the standard error, and this machine's paths."""
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
