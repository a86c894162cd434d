"""`capstan istio enable`: give AKS clusters their Istio add-on, with a CA of their own in Key Vault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from capstan.cli.approving import ApprovalOptions
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table
from capstan.config import System
from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from capstan.config import TrustDomain
    from capstan.rotation.enabling import Enabled


def enable(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    key_vault_id: str = "",
    revision: str = "",
    signed_chain: Path | None = None,
    adopt: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Enable the AKS add-on with a plug-in CA: make it, upload it, enable, see every istiod sign. May be run again.

    For clusters that have no Istio add-on yet. One that runs with a self-signed root is refused: Azure would have to
    disable it first, which deletes the mesh.

    Parameters
    ----------
    key_vault_id
        ARM id of the Key Vault that the CA's four secrets are kept in; default: as the cluster's profile says.
    revision
        Revision of the add-on, such as asm-1-30; default: Azure's choice.
    signed_chain
        With --offline-root: the chain that `capstan sign` made of the requests.
    adopt
        Enable the add-on with the CA that is in the Key Vault already; nothing is made, and nothing written there.
    output
        table, json or yaml.
    """
    # Imported here: Azure's client takes a second, and the other commands need none.
    from capstan.rotation.enabling import require_cluster_id

    if options.system is None:  # there is no control plane yet by which it could be found out
        options = replace(options, system=System.AKS_ISTIO)
    domain = options.resolve((System.AKS_ISTIO,))
    for reference in domain.clusters:  # before Prefect is started for nothing
        require_cluster_id(reference)
    if signed_chain is not None and not signed_chain.is_file():
        raise InvalidInput(
            "the signed chain is not there", where=str(signed_chain), observed="no such file",
            expected="what `capstan sign` wrote", next_command="capstan sign --help",
        )  # fmt: skip
    print_enabled(run_enabling(domain, key_vault_id, revision, signed_chain, adopt=adopt), output)
    return Exit.OK


def run_enabling(
    domain: TrustDomain, key_vault_id: str, revision: str, signed_chain: Path | None, *, adopt: bool = False
) -> Enabled:
    """Run the flow in this process.

    Raises:
        CapstanError: As the flow.
    """
    from capstan.cli.entry_points import enable_flow
    from capstan.cli.rotate import run_flow
    from capstan.rotation.offline import signed_chain_at

    with signed_chain_at(signed_chain):
        return run_flow(
            domain, enable_flow, (key_vault_id, revision, adopt), approvals=ApprovalOptions(),
            title=f"plug-in CA for trust domain {domain.name}", doing="the add-on was not enabled by Prefect",
        )  # fmt: skip


def print_enabled(enabled: Enabled, output: Output) -> None:
    """What it came to, as a table or as data."""
    if output in (Output.JSON, Output.YAML):
        clusters = {
            name: {
                "issuer": issuer,
                "revisions": list(enabled.revisions.get(name, ())),
                "access": enabled.access.get(name, ""),
            }
            for name, issuer in enabled.issuers.items()
        }
        print_data({"schemaVersion": 1, "root": enabled.root, "clusters": clusters}, output)
        return
    print_table(
        ("cluster", "every istiod signs by", "root", "revisions", "access to the vault"),
        [
            (
                name, issuer[:16], enabled.root[:16], ", ".join(enabled.revisions.get(name, ())),
                enabled.access.get(name, ""),
            )
            for name, issuer in enabled.issuers.items()
        ],
    )  # fmt: skip
