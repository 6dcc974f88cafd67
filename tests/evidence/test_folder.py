"""What is read as evidence and what is refused, whoever signed it."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clearstamp.errors import EvidenceError
from clearstamp.evidence import Evidence, Mark, folder, verify_evidence
from clearstamp.evidence.folder import UnreadableError, suspect_files
from tests.evidence.bundles import Case


@pytest.fixture
def there(case: Case, tmp_path: Path) -> Path:
    case.evidence.write(tmp_path / "evidence")
    return tmp_path / "evidence"


def test_what_was_written_is_read(evidence: Evidence, there: Path):
    assert Evidence.read(there).members == evidence.members
    assert {entry.name for entry in there.iterdir() if entry.is_dir()} == {"seal", "deposit", "pictures", "secrets"}


def test_nothing_is_written_over(evidence: Evidence, there: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    evidence.write(tmp_path / "empty")
    for path in (there, there / "SHA256SUMS"):
        with pytest.raises(EvidenceError, match="there is something already"):
            evidence.write(path)


def refused(path: Path, case: Case, match: str) -> None:
    with pytest.raises(EvidenceError, match=match):
        Evidence.read(path)
    result = verify_evidence(path, **case.given())
    assert [check.mark for check in result.checks] == [Mark.FAILED] and result.exit_code == 3


def test_links_pipes_and_strange_folders_are_refused(case: Case, there: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    shutil.copy(there / "check.py", outside)
    (there / "check.py").unlink()
    (there / "check.py").symlink_to(outside)
    refused(there, case, "neither a plain file nor a folder of evidence; got: 'check.py'")
    (there / "check.py").unlink()
    os.mkfifo(there / "check.py")
    refused(there, case, "neither a plain file.*'check.py'")
    (there / "check.py").unlink()
    shutil.move(there / "seal", tmp_path / "seal")
    (there / "seal").symlink_to(tmp_path / "seal")
    refused(there, case, "neither a plain file.*'seal'")
    (there / "seal").unlink()
    (there / "more").mkdir()
    refused(there, case, "neither a plain file.*'more'")
    (there / "more").rmdir()
    (there / "pictures" / "more").mkdir()
    refused(there, case, "neither a plain file.*'more'")


def test_names_that_differ_by_case_alone_are_refused(case: Case, there: Path):
    (there / "Report.html").write_bytes(b"GUILTY")
    if len(list(there.glob("[Rr]eport.html"))) < 2:
        pytest.skip("this file system takes both names for one")
    refused(there, case, "two files of one name; got: 'report.html'")


def test_no_more_is_read_than_evidence_has(case: Case, there: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folder, "LARGEST", sum(map(len, case.evidence.members.values())))
    assert Evidence.read(there).members == case.evidence.members
    with open(there / "report.html", "ab") as file:
        file.write(b" ")
    refused(there, case, "more than evidence has")
    monkeypatch.undo()
    monkeypatch.setattr(folder, "MOST", len(case.evidence.members) - 1)
    refused(there, case, "more than evidence has")


def zipped(path: Path, evidence: Evidence, *more: tuple[Any, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (*evidence.members.items(), *more):
            archive.writestr(name, content)
    return path


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name)
    found.external_attr = mode << 16
    return found


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("report.html", "two files of one name; got: 'report.html'"),
        ("REPORT.html", "two files of one name; got: 'REPORT.html'"),
        (entry("check.py", 0o120777), "neither a plain file.*'check.py'"),
        (entry("pipe", 0o010644), "neither a plain file.*'pipe'"),
    ],
)
def test_a_zip_is_read_as_strictly(case: Case, tmp_path: Path, more: Any, match: str):
    refused(zipped(tmp_path / "evidence.zip", case.evidence, (more, b"somewhere")), case, match)


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "seal/../evil", "..\\evil", "seal//seed.bin", "C:evil", "deposit/"]
)
def test_paths_out_of_the_folder_are_no_names_of_evidence(case: Case, tmp_path: Path, name: str):
    result = verify_evidence(zipped(tmp_path / "evidence.zip", case.evidence, (name, b"x")), **case.given())
    assert result.checks[0].mark is Mark.FAILED and result.exit_code == 3
    assert not (tmp_path / "evil").exists()


def test_a_name_that_goes_on_behind_its_end_is_refused(case: Case, tmp_path: Path):
    path = zipped(tmp_path / "evidence.zip", case.evidence, ("check.pyX.exe", b"x"))
    path.write_bytes(path.read_bytes().replace(b"check.pyX.exe", b"check.py\0.exe"))
    refused(path, case, "neither a plain file")


def test_locked_cut_and_swollen_zips_are_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = zipped(tmp_path / "evidence.zip", case.evidence)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    refused(path, case, "neither a folder nor a whole zip")
    path.write_bytes(b"words")
    refused(path, case, "neither a folder nor a whole zip")
    at = whole.index(b"PK\x01\x02")
    path.write_bytes(whole[: at + 8] + bytes([whole[at + 8] | 1]) + whole[at + 9 :])
    refused(path, case, "neither a plain file")
    monkeypatch.setattr(folder, "LARGEST", 2**20)
    refused(zipped(path, Evidence({"report.html": bytes(2**24)})), case, "more than evidence has")


def test_a_zip_may_have_any_name_and_a_folder_around_all_of_it(case: Case, tmp_path: Path):
    around = Evidence({f"exhibit A/{name}": content for name, content in case.evidence.members.items()})
    assert Evidence.read(zipped(tmp_path / "renamed.zip", around)).members == case.evidence.members
    for outer in ("..", ".", "", "C:", "a\\b"):
        outside = Evidence({f"{outer}/{name}": content for name, content in case.evidence.members.items()})
        assert verify_evidence(zipped(tmp_path / "outside.zip", outside), **case.given()).exit_code == 3


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_whatever_a_damaged_zip_raises_is_one_error(case: Case, tmp_path: Path, method: int):
    path = tmp_path / "evidence.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("manifest.json", case.evidence.members["manifest.json"])
    whole = path.read_bytes()
    for at in range(44, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            Evidence.read(path)
        except EvidenceError:
            continue


def test_a_name_in_a_zip_that_is_no_text_is_refused(case: Case, tmp_path: Path):
    path = zipped(tmp_path / "evidence.zip", case.evidence, ("\u00e9.txt", b"x"))
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    refused(path, case, "neither a folder nor a whole zip; got: UnicodeDecodeError")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_the_system_does_not_let_one_read_is_unchecked(case: Case, there: Path, tmp_path: Path):
    archive = zipped(tmp_path / "evidence.zip", case.evidence)
    for path, given in ((there / "report.html", there), (there / "seal", there), (archive, archive)):
        mode = path.stat().st_mode
        path.chmod(0)
        unreadable(given, case)
        path.chmod(mode)


def test_what_the_system_refuses_is_unchecked(case: Case, there: Path, monkeypatch: pytest.MonkeyPatch):
    """As a folder that is closed, or a disk that fails."""

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "seal")

    for name in ("open", "scandir"):
        with monkeypatch.context() as patched:
            patched.setattr(folder.os, name, fail)
            unreadable(there, case)


def unreadable(path: Path, case: Case) -> None:
    with pytest.raises(UnreadableError, match="the evidence cannot be read; got: .*Permission denied"):
        Evidence.read(path)
    result = verify_evidence(path, **case.given())
    assert [check.mark for check in result.checks] == [Mark.UNCHECKED] and result.exit_code == 4


def test_the_files_of_a_suspect_are_an_index_and_its_shards(tmp_path: Path):
    for name in ("b.safetensors", "a.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    index = tmp_path / "all.index.json"
    index.write_text('{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}')
    found = suspect_files(index)
    assert [each["name"] for each in found] == ["all.index.json", "a.safetensors", "b.safetensors"]
    assert found[1]["size"] == 13 and len(found[1]["sha256"]) == 64
    with pytest.raises(EvidenceError, match="the suspect's file cannot be read"):
        suspect_files(tmp_path / "none.pt")
