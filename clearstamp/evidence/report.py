"""The report: one page that a person reads, without a script, and with everything escaped that others wrote."""

import base64
import html
import re
from decimal import Decimal
from unicodedata import category

from clearstamp.evidence import chance
from clearstamp.evidence.folder import Evidence, key_names, spelled
from clearstamp.evidence.readers import best
from clearstamp.evidence.seal import sha256
from clearstamp.evidence.verdict import LEGIBLE, NOT_INNOCENCE, Outcome, Verdict

COMMANDS = (
    (
        "Who signed. The owner's public key must be one that you have from elsewhere.",
        "openssl pkeyutl -verify -pubin -inkey owner.pub -rawin -in manifest.json -sigfile manifest.json.sig",
    ),
    (
        "None of the files listed was changed. The second line's hash must be the manifest's \"sums\".",
        "sha256sum -c --strict SHA256SUMS",
    ),
    ("", "sha256sum SHA256SUMS"),
    (
        "When the seal existed. tsa.pem is the root certificate of a time-stamp authority that you trust.",
        "openssl ts -verify -data seal/commitment.json -in seal/commitment.json.tsr -CAfile ../tsa.pem",
    ),
    (
        "The draws and p, from seed and pictures. Needs numpy and Pillow; first read its hundred lines.",
        "python check.py",
    ),
    (
        "All of it, and the pictures read again out of the suspect's file. Needs the library.",
        "clearstamp verify . --suspect ../FILE --root ../tsa.pem --owner ../owner.pub",
    ),
)
"""What a verifier runs in the folder, and why."""

MEANING = {
    Outcome.MATCH: "The pictures fit this seal as chance does not: the model or its origin has the stamp.",
    Outcome.SUPPORTS: "A layer of the owner's was put back, so this supports a claim and does not carry one.",
    Outcome.WEAK: "Worth looking into, and no match: somebody with time to try many seals could get as far.",
    Outcome.NO_MATCH: "This does not clear the model: a stamp may have been erased.",
}

NOT_SHOWN = (
    "Who trained first, unless a dated deposit of the trained model says so.",
    "How the suspect's file was obtained, and that it is what the accused gave out: this is the examiner's word.",
    "Whether the use was allowed: a licensed copy matches too.",
    "Which of two holders of a seed acted.",
    "Models that cannot be read from a file, or that were distilled, or from which the stamp was erased with its keys.",
    "What people read in these pictures, unless people were asked: the score is a program's.",
    "Any question of law.",
)

ASSUMED = (
    "The numbers rest on SHA-256, SHAKE-256 and scrypt behaving as random functions, and on a seed that nobody else "
    "had. A forger needs about 1 / p seeds, dated or not: what that costs was not measured, nor how stamps do whose "
    "keys enter at an inner layer, nor what seals in reserve show of each other. What was measured are small networks "
    "for small pictures. Without a time-stamp that you checked, nothing here is dated."
)

README = f"""EVIDENCE

report.html is for reading. It was written by whoever signed this folder: believe what you check, not what it says.
Checks, in this folder and without a network. What you have from elsewhere lies beside the folder, not in it:

{"".join(f"{why and chr(10) + why + chr(10)}  {command}{chr(10)}" for why, command in COMMANDS).lstrip()}
Not shown by any of this:

{"".join(f"- {line}{chr(10)}" for line in NOT_SHOWN)}
{ASSUMED}
"""

STYLE = """
:root { --ink: #1c2026; --soft: #5a6472; --line: #dfe3e8; --shade: #f6f7f9; --good: #0b6b43; --bad: #b3261e }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fff;
  font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 1.5rem }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem }
.verdict { border-left: .4rem solid var(--tone); padding: .25rem 0 .25rem 1.25rem }
.verdict strong { display: block; font-size: 2.6rem; line-height: 1.1; color: var(--tone); letter-spacing: .01em }
.verdict p { margin: .5rem 0 0; max-width: 46rem }
.MATCH { --tone: var(--good) } .SUPPORTS, .WEAK { --tone: #8a5a00 } .NO { --tone: var(--soft) }
.p { font-size: 1.35rem; font-variant-numeric: tabular-nums }
.keys { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; padding: 0 }
.keys li { list-style: none; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
figure { margin: 0 } figcaption { color: var(--soft); font-size: .8rem }
img { display: block; width: 100%; image-rendering: pixelated; border: 1px solid var(--line); background: #fff }
.keys p { margin: .4rem 0 0 }
.letters { font: 600 1rem/1.5 ui-monospace, monospace; letter-spacing: .12em }
.letters del, .letters ins { text-decoration: none } .letters ins { color: var(--good) }
.letters del { color: var(--bad); border-bottom: .15em dotted }
dl { display: grid; grid-template-columns: minmax(8rem, 12rem) 1fr; gap: .35rem 1rem; margin: 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
code, pre { font: .85rem/1.5 ui-monospace, monospace }
pre { background: var(--shade); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem;
  margin: .3rem 0 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
.soft { color: var(--soft) }
@media (max-width: 34rem) {
  dl { grid-template-columns: 1fr } dd { margin-bottom: .5rem } .verdict strong { font-size: 2rem }
}
@media print { body { max-width: none } .keys li { break-inside: avoid } }
"""


UNSEEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs")
"""Categories of Unicode that act, or show nothing. Letters that a Python does not know yet are letters: all write the
same report."""


def plain(text: str) -> str:
    """Text that others wrote, so that a terminal shows it and does nothing else."""
    return "".join(ascii(letter)[1:-1] if category(letter) in UNSEEN and letter != " " else letter for letter in text)


def escape(text: str) -> str:
    """Text that others wrote, so that a page shows it and does nothing else."""
    return html.escape(plain(text))


def render(evidence: Evidence) -> bytes:
    """``report.html`` of everything else in the folder; the same bytes for the same members."""
    verdict, suspect = evidence.verdict, evidence.suspect
    outcome = verdict.outcome.value
    names = ", ".join(each["name"] for each in suspect["files"])
    bar = f'<span class="soft">(a match from 2<sup>−{verdict.bar}</sup> down)</span>'
    body = f"""
<h1>Does {escape(names)} carry a sealed stamp?</h1>
<section class="verdict {outcome.split()[0]}">
<strong>{outcome}</strong>
<p>{MEANING[verdict.outcome]}</p>
<p class="p">p = {power(verdict.p)} {bar}</p>
<p>{meaning(verdict)} This {NOT_INNOCENCE}</p>
</section>

<h2>What the model shows</h2>
<p>Each secret key went in at the model's end; what came out at its start stands beside the picture that was sealed for
that key. {counted(evidence)} Mean correlation of pictures and secrets: {verdict.correlation:.2f}, which counts as
{"legible" if verdict.legible else "not legible"}, by convention from {LEGIBLE} on. Look for yourself.</p>
<ol class="keys">
{"".join(cards(evidence))}</ol>

<h2>What was read</h2>
<dl>
{"".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>{chr(10)}" for name, value in facts(evidence))}</dl>

<h2>Checks to be made</h2>
<p>This page was written by whoever signed the folder, and checks nothing. In the folder, without a network, and with
what you have from elsewhere beside it:</p>
{"".join(f"{why and f'<p>{escape(why)}</p>'}<pre>{escape(command)}</pre>{chr(10)}" for why, command in COMMANDS)}
<h2>What this does not show</h2>
<ul>
{"".join(f"<li>{escape(line)}</li>{chr(10)}" for line in NOT_SHOWN)}</ul>
<p>{escape(ASSUMED)}</p>
"""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{outcome}: evidence on {escape(names)}</title>
<style>{STYLE}</style>
"""
    return (head + body).encode("utf-8")


def power(p: Decimal) -> str:
    """p with two digits, rounded up, as a power of ten."""
    found = chance.told(p)
    if found >= Decimal("0.001"):
        return f"{found:f}"
    return re.sub(r"e-(\d+)", r" × 10<sup>−\1</sup>", f"{found:.1e}")


def meaning(verdict: Verdict) -> str:
    """What p says, in a sentence."""
    return re.sub(r"(\d)e\+(\d+)", r"\1 × 10<sup>\2</sup>", verdict.meaning[0].upper() + verdict.meaning[1:])


def counted(evidence: Evidence) -> str:
    """What was counted, in a sentence."""
    verdict = evidence.verdict
    what = {"bits": "bits", "order": "pictures at their places"}.get(verdict.test, "letters")
    guessed = {"bits": "one in two", "order": f"one in {verdict.of}"}.get(verdict.test, "one in sixteen")
    return f"Of {verdict.of} {what} <b>{verdict.right}</b> are right, where chance gets {guessed} right."


def cards(evidence: Evidence) -> list[str]:
    """Secret and picture of every key side by side, and its letters."""
    seal, verdict = evidence.seal, evidence.verdict
    lines = [""] * len(seal)
    if seal.choices.letters:
        drawn = spelled(seal, seal.letters.reshape(-1))
        read = spelled(seal, best(verdict.scores)) if verdict.test.startswith("letters") else [""] * len(drawn)
        lines = [marked(*pair) for pair in zip(drawn, read, strict=True)] + lines[len(drawn) :]
    names = zip(key_names("secrets", len(seal)), key_names("pictures", len(seal)), lines, strict=True)
    return [
        f"""<li><div class="pair">
{figure(evidence, secret, f"sealed for key {place}")}
{figure(evidence, found, "read from the model")}
</div>{line}</li>
"""
        for place, (secret, found, line) in enumerate(names, 1)
    ]


def figure(evidence: Evidence, name: str, caption: str) -> str:
    """A PNG within the page."""
    content = base64.b64encode(evidence.file(name)).decode()
    image = f'<img src="data:image/png;base64,{content}" alt="{name}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def marked(drawn: str, read: str) -> str:
    """The letters read, those that are wrong marked, beside those drawn."""
    if not read:
        return f'<p class="letters">{escape(drawn)}</p>'
    pairs = [(escape(meant), escape(found)) for meant, found in zip(drawn, read, strict=True)]
    right = sum(meant == found for meant, found in pairs)
    letters = "".join(
        f"<ins>{found}</ins>" if found == meant else f'<del title="{meant} was sealed">{found}</del>'
        for meant, found in pairs
    )
    beside = f"read; sealed {escape(drawn)}: {right} of {len(pairs)} right"
    return f'<p class="letters">{letters}</p><p class="soft">{beside}</p>'


def facts(evidence: Evidence) -> list[tuple[str, str]]:
    """What a reader asks for, and the answers, as HTML."""
    suspect, seal, verdict = evidence.suspect, evidence.seal, evidence.verdict
    choices, unknown = seal.choices, "<em>not stated</em>"
    part = f"part {suspect['held']!r}" if suspect["held"] else "the file itself"
    prefix = f", the prefix {suspect['prefix']!r} taken off" if suspect["prefix"] else ""
    taken = f"{suspect['matched']} tensors, {suspect['coverage']:.1%} of the model's numbers"
    left = f"{len(suspect['missing'])} missing, {len(suspect['extra'])} not of the model"
    tries = f"ways of reading {len(choices.attempts)}, fitting parts of the file {suspect['fitting']}"
    dated = {True: "carries a time-stamp", False: "<b>not dated</b>"}
    found = [
        *((each["name"], f"{each['size']} bytes, SHA-256 {code(each['sha256'])}") for each in suspect["files"]),
        ("found at, as stated", escape(suspect["source"]) or unknown),
        ("obtained, as stated", escape(suspect["obtained"]) or unknown),
        ("architecture", escape(suspect["architecture"]) or unknown),
        ("weights", escape(f"{part}{prefix}: {taken}; {left}")),
        ("read", escape(f"{verdict.attempt}; readout {choices.readout!r}")),
        ("keys enter at", escape(f"layer {choices.tap!r}" if choices.tap else "the model's output")),
        ("test", escape(f"{verdict.test}, by the reader {choices.reader!r}")),
        ("p multiplied by", escape(f"{verdict.tries}: {tries}, files searched {suspect['searched']}")),
        ("owner's words", escape(choices.text) or unknown),
        ("seal", f"commitment {code(seal.commitment)}, {dated[evidence.commitment.token is not None]}"),
        ("deposit", dated[evidence.deposit.token is not None] if evidence.deposit else "none"),
        ("owner's key", f"owner.pub has SHA-256 {code(sha256(evidence.file('owner.pub')))}"),
    ]
    if suspect["head"]:
        found.insert(5, ("put back", escape(f"layer {suspect['head']!r}, which is the owner's own")))
    return found


def code(text: str) -> str:
    """Text as it is, in letters of equal width."""
    return f"<code>{escape(text)}</code>"
