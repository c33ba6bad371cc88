"""Count what becomes of the ONNX standard's own operator tests, here and with other tools.

    python benchmarks/standard.py [--write docs/standard.md] [--peers onnxsim,...] [--every 1]
        [--variants plain,...]

Every case goes through the text form, the surgeon, the passes, each target's passes and table, and
the FX view; then, in the same run, through onnxsim, onnxslim and onnxscript, which live in the venv
that compile.py makes. What a tool makes runs in ONNX Runtime without any optimisation. A tool that
crashes, hangs or raises is started anew; what it raised at is tried once more then. Prints the
tables; takes an hour on two cores, and a quarter of it with `--variants plain`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from compile import peers_python

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from standard.cases import all_cases  # noqa: E402
from standard.judge import FOREIGN, UNKNOWN, VERDICTS, Outcome  # noqa: E402
from standard.pool import Lost, Server, in_parallel  # noqa: E402
from standard.survey import WORKER, Finding, survey  # noqa: E402
from standard.variants import VARIANTS  # noqa: E402

from aigcc.machine import describe_processor  # noqa: E402

PEERS = ("onnxsim", "onnxslim", "onnxscript")
_NAMES = (
    (r", and '[^']*' is \w+", ""),
    (r"\b(input|output) '[^']*'", r"\1"),
    (r"^'[^']*' is no tensor", "an input or output is no tensor"),
    (r"the type of \S+ is", "a type is"),
)
"""Names of values in reasons, and what they are here."""

SAME = "canonicalize,fuse"
"""What the peers are compared with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a page of Markdown, besides what is printed")
    parser.add_argument("--peers", default=",".join(PEERS), help="empty for none")
    parser.add_argument("--every", type=int, default=1, help="one case in so many")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="what is made of each case")
    arguments = parser.parse_args()
    variants = arguments.variants.split(",")
    names = list(all_cases())[:: arguments.every]
    ours = list(survey(names, variants))
    theirs = [
        finding
        for peer in filter(None, arguments.peers.split(","))
        for finding in survey_peer(peer, names, variants)
    ]
    page = "\n".join(_page(names, variants, ours, theirs))
    print(page)
    if arguments.write:
        arguments.write.write_text(page + "\n", "utf-8")


def survey_peer(peer: str, names: list[str], variants: list[str]) -> Iterator[Finding]:
    """What a peer makes of each case in each variant."""
    cases, jobs = all_cases(), os.cpu_count() or 1
    script = str(HERE / "peers" / f"run_{peer}.py")
    command = [peers_python(), str(HERE / "peers" / "serve.py"), script]
    questions = [(name, variant) for variant in variants for name in names]
    with tempfile.TemporaryDirectory() as folder:

        def ask(server: Pair, question: tuple[str, str]) -> Outcome | None:
            name, variant = question
            case = VARIANTS[variant](cases[name])
            if case is None:
                return None
            source, out = (Path(folder) / f"{id(server)}-{end}.onnx" for end in ("in", "out"))
            onnx.save(case.model, source)
            out.unlink(missing_ok=True)
            return server.ask(name, variant, source, out)

        servers = [Pair(command) for _ in range(jobs)]
        for (name, variant), outcome in in_parallel(servers, questions, ask):
            if outcome is not None:
                yield Finding(name, variant, peer, outcome)


class Pair:
    """A process that runs a peer, and one that judges what the peer made."""

    def __init__(self, command: list[str]) -> None:
        self._peer = Server(command, limit=60.0)
        self._judge = Server(WORKER)

    def ask(self, name: str, variant: str, source: Path, out: Path) -> Outcome:
        """What became of a case."""
        try:
            error = self._peer.ask([str(source), str(out)])
            if error:  # what one failure leaves behind is no fault in the next model
                self._peer.close()
                error = self._peer.ask([str(source), str(out)])
                self._peer.close()
        except Lost as lost:
            return Outcome(str(lost))
        if error or not out.exists():
            return Outcome(FOREIGN, error or "it wrote nothing")
        try:
            return Outcome(*self._judge.ask({"case": [name, variant], "model": str(out)}))
        except Lost as lost:
            return Outcome("does not run", f"ONNX Runtime: {lost}")

    def close(self) -> None:
        """End both."""
        self._peer.close()
        self._judge.close()


def _page(
    names: list[str], variants: list[str], ours: list[Finding], theirs: list[Finding]
) -> Iterator[str]:
    version = importlib.metadata.version
    yield "# The ONNX standard's own tests\n"
    yield (
        f"{len(names)} cases come with `onnx` {version('onnx')}: one operator each, at every "
        "version and in every corner, and\nsome small models. This page is written by\n\n"
        f'    python benchmarks/standard.py --variants "{",".join(variants)}" '
        f"--write docs/standard.md\n\non {describe_processor()}. `make test` runs a slice, CI "
        "all of them, in all variants.\n"
    )
    yield (
        "*Right* means: the outputs are those that the standard asks for, or those of ONNX Runtime "
        f"{version('onnxruntime')} on the original\nwithout its optimisations. *Declined* means "
        "an error or a remark of aigcc's that says what and where. *Not judged* are cases that\n"
        "neither ONNX Runtime nor ONNX's own evaluator runs. What a target takes runs as it is "
        "deployed, too, where this machine\ncan do that: mobile in ONNX Runtime, cpu in OpenVINO.\n"
    )
    yield from _table("The cases as they are", [f for f in ours if f.variant == "plain"])
    for variant in variants:
        if variant != "plain":
            yield from _table(TITLES[variant], [f for f in ours if f.variant == variant])
    if theirs:
        yield "## Beside other tools\n"
        yield (
            "In the same run, on all of these models. The other tools have no errors of their own "
            "that say what they decline:\nwhatever they raise is an exception.\n"
        )
        yield from _rows([f for f in ours if f.check == SAME and _is_asked(f, theirs)] + theirs)
    yield from _reasons(ours)


TITLES = {
    "constant tail": "All inputs but the first are constants",
    "constant head": "The first input is a constant",
    "constants": "All inputs are constants",
    "function": "All nodes are in a function",
}


def _is_asked(finding: Finding, theirs: list[Finding]) -> bool:
    return any(finding.variant == other.variant for other in theirs)


def _table(title: str, findings: list[Finding]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _rows(findings)


def _rows(findings: list[Finding]) -> Iterator[str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for finding in findings:
        counts[finding.check][finding.outcome.verdict] += 1
    shown = [v for v in VERDICTS if v != UNKNOWN or any(c[UNKNOWN] for c in counts.values())]
    yield f"| | {' | '.join(shown)} |"
    yield f"|---|{'---:|' * len(shown)}"
    for check, count in counts.items():
        yield f"| {check} | {' | '.join(str(count[verdict]) for verdict in shown)} |"
    yield ""


def _reasons(findings: Iterable[Finding]) -> Iterator[str]:
    """What is declined, by reason, the most frequent first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for finding in findings:
        if finding.variant == "plain" and finding.outcome.verdict == "declined":
            for reason in _parts(finding.outcome.why):
                found[finding.check][reason] += 1
    yield "## What is declined\n"
    yield "Of the cases as they are; one may have several reasons.\n"
    for check, reasons in found.items():
        yield f"### {check}\n"
        yield "| cases | reason |"
        yield "|---:|---|"
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            yield f"| {count} | {reason} |"
        yield ""


def _parts(why: str) -> set[str]:
    """The reasons in a message, without the nodes and values that it names."""
    why = re.sub(r", \d+ of them, such as node '[^']*'", "", why)
    why = why.removeprefix("the module cannot become torch: ")
    return {_plain(part) for part in re.split(r"; (?!or )", why)}


def _plain(reason: str) -> str:
    for pattern, plain in _NAMES:
        reason = re.sub(pattern, plain, reason)
    return re.sub(r"\s+", " ", reason).replace("|", "\\|")


if __name__ == "__main__":
    main()
