"""`capstan evidence`: read and verify the signed account of a rotation, without a cluster and without the vault."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from capstan import evidence
from capstan.cli.output import Exit, Output, print_data, print_table
from capstan.errors import InvalidInput

app = App(name="evidence", help="The signed, hash-chained account of a rotation.")


@app.command
def show(file: Path, /, *, output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE) -> int:
    """Print every entry of a verified account.

    Parameters
    ----------
    file
        The account, a .jsonl file.
    output
        table, json or yaml.
    """
    entries = evidence.read(file)
    if output in (Output.TABLE, Output.SHORT):
        print_table(
            ("n", "time", "kind", "facts"), [(str(r.n), r.time, r.kind, r.facts) for r in evidence.rows(entries)]
        )
    else:
        print_data(
            [
                {"n": entry.n, "time": entry.time.isoformat(), "kind": entry.kind, "body": dict(entry.body)}
                for entry in entries
            ],
            output,
        )
    return Exit.OK


@app.command
def timeline(file: Path, /) -> int:
    """Draw a verified account as a picture: phases, decisions, restarts, who trusts what, over time.

    SVG on stdout: `capstan evidence timeline FILE.jsonl > rotation.svg`.

    Parameters
    ----------
    file
        The account, a .jsonl file.
    """
    sys.stdout.write(evidence.draw(evidence.read(file)) + "\n")
    return Exit.OK


@app.command
def verify(
    file: Path,
    /,
    *,
    public_key: Path | None = None,
    head: str | None = None,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Verify chain, signatures, order and completeness of an account; exit 0 only if all hold.

    Parameters
    ----------
    file
        The account, a .jsonl file.
    public_key
        PEM of the key that must have signed it; without one, compare the printed fingerprint with one you trust.
    head
        SHA-256 of the last line, noted elsewhere (the rotation record keeps it): makes a cut-off end visible.
    output
        table, json or yaml.
    """
    key = evidence.load_public_key(_read(public_key), str(public_key)) if public_key else None
    report = evidence.verify(file, key, head=head)
    facts = {
        "rotation": report.rotation,
        "entries": report.entries,
        "started": report.started.isoformat(),
        "ended": report.ended.isoformat(),
        "finished": report.finished,
        "outcome": report.outcome,
        "public_key_fingerprint": report.public_key_fingerprint,
        "key_confirmed": report.key_confirmed,
        "head": report.head,
        "continues": report.continues.path if report.continues else None,
        "verified": True,
    }
    if output in (Output.TABLE, Output.SHORT):
        rows = [
            ("verified", "chain, signatures, order: all hold"),
            ("rotation", report.rotation),
            (
                "entries",
                f"{report.entries}, {report.started:%Y-%m-%d %H:%M:%S} to {report.ended:%Y-%m-%d %H:%M:%S} UTC",
            ),
            ("complete", f"yes, outcome {report.outcome}" if report.finished else "no: the rotation has not finished"),
            ("signed by", report.public_key_fingerprint),
            (
                "key",
                "the one given" if report.key_confirmed else "NOT confirmed: compare the fingerprint, or --public-key",
            ),
            ("head", report.head),
        ]
        if report.continues is not None:
            before = report.continues
            rows.insert(2, ("goes on from", f"{before.path}, verified: {before.entries} entries, {before.outcome}"))
        print_table(("account", str(file)), rows)
    else:
        print_data(facts, output)
    return Exit.OK


def _read(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "the public key cannot be read", where=str(file), observed=getattr(error, "strerror", None) or str(error),
            expected="a PEM file", next_command="capstan evidence verify --help",
        ) from error  # fmt: skip
