"""The command `clearstamp`: from a seal to a verdict, for people who write no Python."""

import argparse
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

from torch import nn

from clearstamp.checkpoints import parsed
from clearstamp.errors import ClearStampError
from clearstamp.evidence import chance
from clearstamp.evidence.architectures import FORMS, Architecture
from clearstamp.evidence.checks import verify_evidence
from clearstamp.evidence.examination import check_own, examine
from clearstamp.evidence.folder import Evidence, suspect_files
from clearstamp.evidence.people import blind, grade, read_answers
from clearstamp.evidence.report import plain
from clearstamp.evidence.seal import BAR, TESTS, Seal
from clearstamp.evidence.signing import (
    Signer,
    UnreadableTokenError,
    check_token,
    fetch_token,
    time_stamp_request,
)
from clearstamp.evidence.statements import BESIDE, Statement, commit, deposit, in_numbers
from clearstamp.evidence.verdict import Outcome, verify
from clearstamp.files import checksum, write_atomically
from clearstamp.suspects import COUNTER, load_suspect, prefixes

__all__ = ["main"]

MATCH, NO_MATCH, SLIP, FAILED, UNCHECKED = range(5)
"""Exit codes. 0 is also that of a verb which judges nothing and did its work."""

CODES = """exit codes:
  0  a match, and every check passed (for a verb that judges nothing: done)
  1  no match, or only a weak or a supporting one; this does not clear the model
  2  the command cannot be carried out as it was typed
  3  a check FAILED: something was changed, or is not what it is said to be
  4  a check is UNCHECKED, or a file cannot be read: nothing is said either way"""

ANSWERS = "answers.json"
ALPHA = f"2^-{BAR}"


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with a command."""

    def error(self, message: str) -> NoReturn:
        self.exit(SLIP, plain(f"{self.prog}: {message}; {self.prog} --help tells more") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. The exit code is the answer; what was found goes to stdout, what went wrong to stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of letters that a terminal does not have
    given = parser().parse_args(argv)
    try:
        code: int = given.run(given)
        return code
    except (ClearStampError, OSError) as error:
        typed = type(error) is ClearStampError or isinstance(error, OSError) or given.verb == "seal"
        say(f"clearstamp {given.verb}: {error}")
        return told(given, [], {"error": str(error)}, SLIP if typed else UNCHECKED)
    except (Exception, SystemExit) as error:  # else Python would exit with 1, which says "no match", or with 0
        traceback.print_exc()
        return told(given, [], {"error": f"{type(error).__name__}: {error}"}, UNCHECKED)


def parser() -> argparse.ArgumentParser:
    """Every verb, in the order in which a dispute needs them."""
    whole = Parser(
        prog="clearstamp",
        description="Who owns a neural network? Seal a stamp before training, examine a suspect, verify the evidence.",
        epilog="clearstamp VERB --help explains a verb, with an example.\n\n" + CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"clearstamp {version('clearstamp')}")
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)

    one = verb(verbs, "seal", run_seal, SEAL)
    one.add_argument("--outputs", type=integers, required=True, metavar="N", help="shape of the output, or of --tap's")
    one.add_argument("--shape", type=integers, required=True, metavar="C,H,W", help="shape of the model's input")
    one.add_argument("--codes", type=int, default=11, metavar="N", help="how many pictures hold drawn letters (11)")
    one.add_argument("--images", type=file, nargs="+", default=[], metavar="FILE", help="pictures of yours, as a logo")
    one.add_argument(
        "--bytes", type=file, metavar="FILE", help="a text of yours that pictures hold in place of letters"
    )
    one.add_argument(
        "--tap", metavar="LAYER", help="the layer behind which keys enter, so that a new head does no harm"
    )
    one.add_argument("--reserve", type=count, default=0, metavar="N", help="further seals, for when one was opened")
    one.add_argument("--test", choices=TESTS, help="the one test that will be run (letters, bits with --bytes)")
    one.add_argument("--text", default="", help="words of yours that are sealed too, such as your name")
    sign(one, "your Ed25519 key in PEM; made if there is none")
    one.add_argument("-o", dest="out", type=new, required=True, metavar="NAME.seal", help="where the seal goes")

    one = verb(verbs, "date", run_date, DATE)
    one.add_argument("file", type=file, metavar="FILE", help="what is dated: a commitment or a deposit")
    how = one.add_mutually_exclusive_group()
    how.add_argument("--tsa", metavar="URL", help="ask this time-stamp authority (RFC 3161)")
    how.add_argument("--token", type=file, metavar="FILE.tsr", help="take what an authority answered to FILE.tsq")
    roots(one)

    one = verb(verbs, "deposit", run_deposit, DEPOSIT)
    one.add_argument("model", type=file, metavar="MODEL", help="the file of your trained weights")
    sealed(one)
    architecture(one)
    sign(one, "your Ed25519 key in PEM")

    part(one)

    one = verb(verbs, "inspect", run_inspect, INSPECT)
    one.add_argument("file", type=file, metavar="FILE", help="a checkpoint")

    one = verb(verbs, "examine", run_examine, EXAMINE)
    one.add_argument("suspect", type=file, metavar="SUSPECT", help="the file that was found")
    sealed(one)
    architecture(one)
    sign(one, "your Ed25519 key in PEM")
    one.add_argument("--source", default="", metavar="WHERE", help="where the file was found; nobody can check this")
    one.add_argument("--obtained", default="", metavar="DATE", help="when, and by whom; nobody can check this either")
    one.add_argument("--searched", type=count, default=1, metavar="N", help="files up to this one; multiplies p (1)")
    part(one)
    one.add_argument("--partial", action="store_true", help="read a file that lacks some of the model's tensors")
    one.add_argument("--head-from", type=file, metavar="MODEL", help="put back a layer that was replaced, of your own")
    one.add_argument("--head-part", metavar="NAME", help="a part of that file, if several fit")
    one.add_argument("-o", dest="out", type=Path, required=True, metavar="DIR", help="a new folder for the evidence")

    one = verb(verbs, "verify", run_verify, VERIFY)
    evidence(one)
    one.add_argument("--suspect", type=file, metavar="FILE", help="the suspect's file, to be read again")
    architecture(one, required=False)
    roots(one)
    one.add_argument("--owner", type=file, metavar="FILE.pub", help="the owner's public key in PEM, from elsewhere")
    alpha(one)

    one = verb(verbs, "blind", run_blind, BLIND)
    evidence(one)
    one.add_argument("-o", dest="out", type=new, required=True, metavar="SHEET.html", help="where the sheet goes")

    one = verb(verbs, "grade", run_grade, GRADE)
    evidence(one)
    one.add_argument("answers", type=file, nargs="+", metavar=ANSWERS, help="the form of a reader, one for each")
    one.add_argument("--asked", type=count, metavar="N", help="how many were asked, if not all answered; multiplies p")
    alpha(one)
    return whole


# ------------------------------------------------------------------------------------------------------------ options


def verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
    """A verb: its first line, what it does, and an example."""
    first, rest, example = about.strip().split("\n\n")
    made: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=first,
        description=f"{first}{'' if first.endswith('?') else '.'}\n\n{fill(rest, 80)}",
        epilog=f"{example}\n\n{CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--json", action="store_true", help="print JSON, for programs")
    made.set_defaults(run=run)
    return made


def sealed(one: argparse.ArgumentParser) -> None:
    told = "your seal; its statements lie beside it"
    one.add_argument("--seal", type=file, required=True, metavar="NAME.seal", help=told)


def architecture(one: argparse.ArgumentParser, *, required: bool = True) -> None:
    one.add_argument("--arch", type=named, required=required, metavar="A", help=f"the architecture: {FORMS}")


def sign(one: argparse.ArgumentParser, told: str) -> None:
    one.add_argument("--sign", type=Path, required=True, metavar="KEY", help=told)


def part(one: argparse.ArgumentParser) -> None:
    one.add_argument("--part", metavar="NAME", help="a part of the file, if several fit: clearstamp inspect lists them")


def evidence(one: argparse.ArgumentParser) -> None:
    one.add_argument("evidence", type=there, metavar="DIR|ZIP", help="the evidence")


def roots(one: argparse.ArgumentParser) -> None:
    told = "root certificates of time-stamp authorities that you trust, in PEM"
    one.add_argument("--root", type=file, metavar="FILE.pem", help=told)


def alpha(one: argparse.ArgumentParser) -> None:
    told = f"a match is a p of at most this ({ALPHA}), and of the seal's own bar"
    one.add_argument("--alpha", type=probability, default=ALPHA, metavar="P", help=told)


def file(text: str) -> Path:
    """A file that is there."""
    if not os.path.isfile(text):  # which raises for no name, however long, and for no folder, however closed
        raise argparse.ArgumentTypeError(f"{text} is a folder" if os.path.isdir(text) else f"no such file: {text}")
    return Path(text)


def there(text: str) -> Path:
    """A file or a folder that is there."""
    return Path(text) if os.path.isdir(text) else file(text)


def new(text: str) -> Path:
    """A file that is not there yet."""
    if os.path.lexists(text):
        raise argparse.ArgumentTypeError(f"{text} is there already, and nothing is overwritten")
    return Path(text)


def integers(text: str) -> tuple[int, ...]:
    """Such as ``1,28,28``."""
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", text):
        raise argparse.ArgumentTypeError(f"{text} is no length and no shape such as 1,28,28")
    return tuple(map(int, text.split(",")))


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text} is no number of at least 1")
    return int(text)


def probability(text: str) -> Decimal:
    """Such as ``2^-64`` or ``1e-6``."""
    power = re.fullmatch(r"2\^-(\d{1,4})", text)
    try:
        found = Decimal(2) ** -int(power[1]) if power else Decimal(text)
        if not 0 < found <= 1:
            raise InvalidOperation
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text} is no probability such as 2^-64 or 1e-6") from None
    return found


def named(text: str) -> Architecture:
    try:
        return Architecture.parse(text)
    except ClearStampError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# -------------------------------------------------------------------------------------------------------------- verbs

SEAL = """
make a seal before training: your choices are hashed, then keys and letters are drawn

Everything that you choose is written down and hashed together with a secret seed; only then are the keys and the
letters drawn that the model will be trained to show. So nobody, you included, can choose them to fit a model. The seal
is SECRET: whoever has it can read the stamp, and erase it. The commitment beside it gives nothing away: have it dated,
and publish it if you like.

example:
  clearstamp seal --outputs 10 --shape 1,28,28 --sign owner.key -o acme.seal
"""


def run_seal(given: argparse.Namespace) -> int:
    paths = [given.out, *(beside(given.out, f".reserve-{place}.seal") for place in range(1, given.reserve + 1))]
    made = [*paths, *(each for path in paths for each in statement_paths(commitment_of(path)))]
    check_new(made)
    if {path.resolve() for path in made} & {given.sign.resolve(), Path(f"{given.sign}.pub").resolve()}:
        raise ClearStampError("the key would lie where the seal goes", got=given.sign)
    signer = Signer.load(given.sign) if given.sign.exists() else None
    seals = [
        Seal.make(
            outputs=given.outputs,
            shape=given.shape,
            codes=given.codes,
            images=given.images,
            data=None if given.bytes is None else given.bytes.read_bytes(),
            text=given.text,
            test=given.test,
            tap=given.tap,
        )
        for _ in paths
    ]
    if signer is None:
        signer = Signer.make()
        public = signer.save(given.sign)
        say(f"made the key {given.sign} (SECRET: it signs in your name) and {public}, which you give to others")
    choices = seals[0].choices
    best, bar = choices.floor * len(choices.attempts), choices.alpha
    size, what = {"bits": (choices.bits, "bits"), "order": (len(choices.pictures), "pictures in their order")}.get(
        choices.test, (choices.letters, f"letters of {len(choices.alphabet)}")
    )
    lines = [f"test {choices.test}: {size} {what}   best p {chance.told(best):.1e}   floor ok (bar {bar:.1e})"]
    facts: dict[str, Any] = {"test": choices.test, "of": size, "best_p": f"{chance.told(best, 6):.5e}"}
    facts |= {"bar": f"{bar:.5e}", "seals": []}
    for seal, path in zip(seals, paths, strict=True):
        statement, short = commitment_of(path), f"{seal.commitment[:6]}...{seal.commitment[-2:]}"
        seal.save(path)
        commit(seal, signer).save(statement)
        lines.append(f"wrote {path} (SECRET: it reads and erases the stamp), {statement} ({short})")
        lines.append(f"NOT DATED YET: clearstamp date {statement} --tsa URL")
        facts["seals"].append({"seal": str(path), "statement": str(statement), "commitment": seal.commitment})
    return told(given, lines, facts)


DATE = """
have a file dated by a time-stamp authority; the only verb that uses a network

A time-stamp (RFC 3161) proves that the file existed at a time. Nothing but its hash leaves this machine. Without --tsa
and --token the request is written, for you to send by other means. The token is put beside the file, as FILE.tsr.

example:
  clearstamp date acme.commitment.json --tsa https://freetsa.org/tsr
"""


def run_date(given: argparse.Namespace) -> int:
    path, content = given.file, given.file.read_bytes()
    token_path, request_path = Path(f"{path}.tsr"), Path(f"{path}.tsq")
    if os.path.lexists(token_path):
        raise ClearStampError("it is dated already, and nothing is overwritten", got=token_path)
    if given.tsa is None and given.token is None:
        write_atomically(request_path, time_stamp_request(content))
        lines = [
            f"wrote {request_path}: send it to a time-stamp authority, as by",
            f"  curl -H 'Content-Type: application/timestamp-query' --data-binary @{request_path} URL > answer.tsr",
            f"NOT DATED YET: clearstamp date {path} --token answer.tsr",
        ]
        return told(given, lines, {"request": str(request_path)})
    token = fetch_token(content, given.tsa) if given.token is None else given.token.read_bytes()
    if hashlib.sha256(content).digest() not in token:
        expected = f"one with the SHA-256 of {path}"
        raise ClearStampError("the token is one of another file, or hash", got=given.token, expected=expected)
    if request_path.is_file() and token == request_path.read_bytes():
        raise ClearStampError("this is what was asked, not what an authority answered", got=given.token)
    found = f"NOT CHECKED: --root, the certificate of an authority that you trust, tells whether {token_path} holds"
    code = MATCH
    if given.root is not None:
        try:
            stamp = check_token(content, token, given.root.read_bytes())
            found = f"{path} existed by {stamp.time:%Y-%m-%d %H:%M:%S %Z} ({stamp.authority})"
        except UnreadableTokenError as error:
            found = f"UNCHECKED: {error}; openssl ts -verify -data {path} -in {token_path} -CAfile {given.root}"
            code = UNCHECKED
    write_atomically(token_path, token)
    return told(given, [f"wrote {token_path}", found], {"token": str(token_path), "found": found}, code)


DEPOSIT = """
write down, after training, which model is yours and how it reads

A deposit names the trained model by the hash of its weights, and the stamp as it reads in them. It tells no secret.
Have it dated as soon as the model is trained: if two people claim a model, the earlier deposit of a model with one
stamp alone decides.

example:
  clearstamp deposit acme.safetensors --seal acme.seal --arch clearstamp:cnn --sign owner.key
"""


def run_deposit(given: argparse.Namespace) -> int:
    path = deposit_of(given.seal)
    check_new(statement_paths(path))
    seal, signer = Seal.load(given.seal), Signer.load(given.sign)
    if commitment_of(given.seal).is_file():
        check_own("commitment", Statement.load(commitment_of(given.seal)), seal, signer)
    model = load_suspect(given.model, built(given.arch.fitting(seal.choices), given.model), choose=given.part).model
    verdict = verify(seal.transpose(model), seal)
    made = deposit(seal, model, verdict, signer)
    made.save(path)
    lines = [*str(verdict).splitlines(), f"wrote {path}", f"NOT DATED YET: clearstamp date {path} --tsa URL"]
    facts = {"statement": str(path), "model": json.loads(made.content)["model"], "reading": in_numbers(verdict)}
    return told(given, lines, facts, judged(verdict.outcome))


INSPECT = """
say what a checkpoint is; nothing in it is executed

The file is read in a process of its own. Every part that holds tensors is listed with their names, shapes and types of
number, the prefixes that wrappers have left on the names, and the SHA-256 by which a deposit names a model, if there is
no prefix on its names.

example:
  clearstamp inspect found.pth
"""


def run_inspect(given: argparse.Namespace) -> int:
    facts: dict[str, Any] = {"files": suspect_files(given.file), "parts": []}
    lines = [f"{each['name']}   {each['size']:,} bytes   sha256 {each['sha256']}" for each in facts["files"]]
    for way, held in parsed(given.file).items():
        tensors = held.tensors
        read = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        rows = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), bool(read[name].isfinite().all()))
            for name, tensor in tensors.items()
        ]
        about: dict[str, Any] = {
            "part": way,
            "numbers": sum(tensor.numel() for tensor in tensors.values()),
            "prefixes": [prefix for prefix in prefixes(tensors) if prefix],
            "unread": held.unread,
            "digest": checksum((), {name: tensor for name, tensor in read.items() if not name.endswith(COUNTER)}),
        }
        fields = ("name", "type", "shape", "finite")
        facts["parts"].append(about | {"tensors": [dict(zip(fields, row, strict=True)) for row in rows]})
        lines.append(f"\n{repr(way) if way else 'the file itself'}: {len(rows)} tensors, {about['numbers']:,} numbers")
        lines.append(f"  digest {about['digest']}")
        if about["prefixes"]:
            lines.append(f"  prefixes on names: {', '.join(map(repr, about['prefixes']))}")
        width = max((len(name) for name, *_ in rows), default=0)
        lines += [
            f"  {name:{width}}  {kind:8} {shape}" + ("" if finite else "   NOT FINITE")
            for name, kind, shape, finite in rows
        ]
        lines += [f"  {name}   NOT READ: {reason}" for name, reason in held.unread.items()]
    return told(given, lines, facts)


EXAMINE = """
read a suspect's file as the seal says, and write the evidence

The file is read in a process of its own and nothing in it is executed. The evidence is a folder with a report for
people and everything that somebody needs to check it without you. It opens the seal, so whoever has it can erase the
stamp: give it to those who decide, and use a reserve afterwards.

example:
  clearstamp examine found.pth --seal acme.seal --arch clearstamp:cnn --sign owner.key \\
    --source https://example.org/model --obtained "2027-02-03, by a notary" --searched 1 -o evidence
"""


def run_examine(given: argparse.Namespace) -> int:
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ClearStampError("there is something already, and nothing is overwritten", got=given.out)
    seal, signer = Seal.load(given.seal), Signer.load(given.sign)
    arch = given.arch.fitting(seal.choices)
    model = built(arch, given.suspect)
    made = examine(
        given.suspect,
        seal,
        model,
        signer=signer,
        commitment=Statement.load(commitment_of(given.seal)),
        deposit=Statement.load(deposit_of(given.seal)) if deposit_of(given.seal).is_file() else None,
        named=str(arch),
        source=given.source,
        obtained=given.obtained,
        searched=given.searched,
        choose=given.part,
        partial=given.partial,
        head_from=None
        if given.head_from is None
        else load_suspect(given.head_from, model, choose=given.head_part).model,
    )
    made.write(given.out)
    lines = [
        how_read(given.suspect, made.suspect),
        *str(made.verdict).splitlines(),
        f"wrote {given.out} ({len(made.members)} files; report.html is for people). It opens the seal.",
        "for those who decide: "
        f"clearstamp verify {given.out} --suspect {given.suspect} --root tsa.pem --owner {given.sign}.pub",
    ]
    facts = {"evidence": str(given.out), "suspect": made.suspect, "verdict": in_numbers(made.verdict)}
    return told(given, lines, facts, judged(made.verdict.outcome))


VERIFY = """
check the evidence without its owner and without a network, and judge the pictures anew

Every check is told by itself: PASS, FAILED, UNCHECKED, or STATED for what is somebody's word. The owner's key and the
certificates of time-stamp authorities are yours, from elsewhere: those in the evidence prove nothing. With --suspect
the pictures are read out of the file again; an architecture that is code of somebody's runs only if you name it
yourself, with --arch.

example:
  clearstamp verify evidence --suspect found.pth --root tsa.pem --owner owner.pub
"""


def run_verify(given: argparse.Namespace) -> int:
    away = [folder_of(given.evidence), *([] if given.suspect is None else [folder_of(given.suspect)])]

    def architecture(text: str) -> nn.Module:
        if given.arch is not None:
            return built(given.arch.fitting(Evidence.read(given.evidence).seal.choices), *away)
        found = Architecture.parse(text)
        if found.own_code:
            raise ClearStampError(
                "the evidence names code as its architecture", got=text, remedy="--arch, if you trust it"
            )
        return found.build()

    for path in (given.owner, given.root):
        if path is not None and given.evidence.resolve() in path.resolve().parents:
            raise ClearStampError("what lies in the evidence proves nothing", got=path, remedy="yours, from elsewhere")
    result = verify_evidence(
        given.evidence,
        owner=None if given.owner is None else given.owner.read_bytes(),
        roots=None if given.root is None else given.root.read_bytes(),
        suspect=given.suspect,
        architecture=architecture,
        alpha=given.alpha,
    )
    return told(given, str(result).splitlines(), result.as_json(), result.exit_code)


BLIND = """
make a sheet on which people read the pictures without knowing the answers

The sheet is one page without a script. Beside it goes answers.json, the form that the reader fills in. Give these two
to the reader, and nothing else of the evidence. The order of the pictures follows from the seal, so that nobody can
choose it. Whether the evidence is what it is said to be is for clearstamp verify to tell.

example:
  clearstamp blind evidence -o for-reader/sheet.html
"""


def run_blind(given: argparse.Namespace) -> int:
    form_path = given.out.parent / ANSWERS
    if given.evidence.is_dir() and given.evidence.resolve() in given.out.resolve().parents:
        raise ClearStampError(
            "nothing is added to evidence", got=given.out, remedy="a folder of its own for the reader"
        )
    check_new([form_path])
    if given.out.name == ANSWERS:
        raise ClearStampError("the form for the answers has that name", got=given.out, remedy="another for the sheet")
    held = Evidence.read(given.evidence)
    page, form = blind(held.seal, held.pictures)
    write_atomically(given.out, page.encode())
    write_atomically(form_path, form.encode())
    lines = [
        f"wrote {given.out}, {form_path}",
        f"for each reader both, and nothing else; then: clearstamp grade {given.evidence} {form_path}",
    ]
    return told(given, lines, {"sheet": str(given.out), "form": str(form_path)})


GRADE = """
how well did people read, and how often does chance read as well?

The test is that of the seal's letters, with a person in place of the computer. Everybody who was asked counts, also
those who did not answer: p is multiplied by their number. Whether the evidence is what it is said to be is for
clearstamp verify.

example:
  clearstamp grade evidence alice.json bob.json --asked 3
"""


def run_grade(given: argparse.Namespace) -> int:
    held = Evidence.read(given.evidence)
    seal, pictures, verdict = held.seal, held.pictures, held.verdict
    found = grade(
        seal,
        pictures,
        [read_answers(path.read_bytes(), seal, pictures) for path in given.answers],
        asked=given.asked,
        tries=verdict.tries,
        grafted=bool(held.suspect["head"]),
        alpha=given.alpha,
    )
    facts = {
        "readers": [
            {"reader": name, "right": right, "p": f"{chance.told(p, 6):.5e}"} for name, right, p in found.readers
        ],
        "of": found.of,
        "what": found.what,
        "asked": found.asked,
        "tries": found.tries,
        "p": f"{chance.told(found.p, 6):.5e}",
        "outcome": found.outcome.value,
    }
    return told(given, str(found).splitlines(), facts, judged(found.outcome))


# ------------------------------------------------------------------------------------------------------- what is told


def told(given: argparse.Namespace, lines: Sequence[str], facts: Mapping[str, Any], code: int = MATCH) -> int:
    """Print what was found, in lines for people or as facts for programs; the exit code."""
    if given.json:
        print(json.dumps({"exit_code": code, **facts}, indent=1))
    elif lines:
        print(shown("\n".join(lines)))
    return code


def judged(outcome: Outcome) -> int:
    """The exit code of a verdict."""
    return MATCH if outcome is Outcome.MATCH else NO_MATCH


def how_read(path: Path, suspect: Mapping[str, Any]) -> str:
    """Which part of the file was read, in a sentence."""
    parts = [f"{path}: {suspect['matched']} tensors, {suspect['coverage']:.1%} of the model's numbers"]
    parts += [f"from {suspect['held']!r}"] if suspect["held"] else []
    parts += [f"the prefix {suspect['prefix']!r} taken off"] if suspect["prefix"] else []
    parts += [f"the owner's own layer {suspect['head']!r} put back"] if suspect["head"] else []
    return ", ".join(parts)


def say(sentence: str) -> None:
    print(shown(sentence), file=sys.stderr)


def shown(text: str) -> str:
    """Lines in which names that others gave do nothing to a terminal."""
    return "\n".join(map(plain, text.split("\n")))


def beside(path: Path, ending: str) -> Path:
    """The file of another ending that belongs to a seal."""
    return path.with_name(path.name.removesuffix(".seal") + ending)


def commitment_of(path: Path) -> Path:
    return beside(path, ".commitment.json")


def deposit_of(path: Path) -> Path:
    return beside(path, ".deposit.json")


def statement_paths(path: Path) -> list[Path]:
    """A statement's file, and all that may lie beside it."""
    return [path, *(Path(f"{path}{ending}") for ending in BESIDE.values())]


def check_new(paths: Sequence[Path]) -> None:
    """Raise `ClearStampError` if anything is there already."""
    if there := [path for path in paths if os.path.lexists(path)]:
        raise ClearStampError("there is something already, and nothing is overwritten", got=there[0])


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.resolve().parent


def built(arch: Architecture, *beside: Path) -> nn.Module:
    """The architecture that somebody named on the command line, whose code may be the caller's own."""
    if arch.own_code:
        say(f"running {arch.provider}, code of your own, to build {arch}")
    return arch.build(away_from=[folder_of(path) for path in beside])
