"""What `capstan check` says about the managed cluster around an Istio add-on with a plug-in CA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.errors import CapstanError, Denied
from capstan.systems.aks.arm import open_arm
from capstan.systems.aks.enable import require_access, why_no_rotation
from capstan.systems.aks.profile import Profile, read_profile
from capstan.systems.base import CheckResult, Severity, Status

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

    from capstan.systems.aks.arm import Arm

CATEGORY: Final = "aks-add-on"
PLUGIN_CA: Final = "https://learn.microsoft.com/azure/aks/istio-plugin-ca"
ROTATION: Final = "https://learn.microsoft.com/azure/aks/csi-secrets-store-configuration-options"


def checks(cluster_id: str, credential: TokenCredential | None = None) -> tuple[CheckResult, ...]:
    """All checks of one managed cluster; what Azure does not answer is a failed check, nothing is raised.

    Args:
        cluster_id: Its ARM id; empty where only the vault is known, which leaves nothing to look at.
        credential: Default: azure-identity's DefaultAzureCredential.
    """
    told = "the cluster's profile names a plug-in CA"
    if not cluster_id:
        return (
            _result(told, Severity.ERROR, Status.SKIPPED, "no plugin_ca.cluster_id is given: nothing of it is read"),
        )
    try:
        arm = open_arm(cluster_id, credential)
        profile = read_profile(arm)
        profile.required_plugin()
    except CapstanError as error:
        return (_result(told, Severity.ERROR, Status.ERROR, str(error)),)
    return (
        _result(told, Severity.ERROR, Status.OK),
        _at_rest(profile),
        _follows(profile),
        _may_read(arm, profile),
    )


def _at_rest(profile: Profile) -> CheckResult:
    told = "no other change of the cluster is under way"
    if not profile.changing:
        # A rotation asks nothing of Azure's control plane: a last change that failed is no reason to let a CA expire.
        failed = "" if profile.state in ("Succeeded", "") else f"{profile.where}: the last change is {profile.state}"
        return _result(told, Severity.ERROR, Status.OK, failed)
    message = f"{profile.where} is {profile.state}: istiod and its pods may be replaced at any moment"
    return _result(told, Severity.ERROR, Status.ERROR, message)


def _follows(profile: Profile) -> CheckResult:
    told = "new versions in the Key Vault come to istiod by themselves"
    why = why_no_rotation(profile)
    if not why:
        return _result(told, Severity.WARNING, Status.OK, hint=ROTATION)
    message = f"{why}; a rotation will wait for them in vain, and then restart istiod"
    return _result(told, Severity.WARNING, Status.WARNING, message, hint=ROTATION)


def _may_read(arm: Arm, profile: Profile) -> CheckResult:
    told = "the secrets provider may read the Key Vault"
    try:
        message = require_access(arm, profile, profile.required_plugin())
    except Denied as error:
        return _result(told, Severity.ERROR, Status.ERROR, str(error))
    except CapstanError as error:
        return _result(told, Severity.ERROR, Status.SKIPPED, f"who may read it cannot be seen: {error.what}")
    seen = message.startswith(("the secrets provider has the role", "the vault's access policy"))
    return _result(told, Severity.ERROR, Status.OK if seen else Status.SKIPPED, message)


def _result(told: str, level: Severity, status: Status, message: str = "", *, hint: str = PLUGIN_CA) -> CheckResult:
    return CheckResult(CATEGORY, told, hint, level, status, message)
