"""A Terraform plug-in that knows the documented arguments of a few azurerm resources, and nothing else.

With it `terraform validate` judges infra/terraform where the real provider cannot be downloaded: names and types of
arguments, required ones, references and their attributes. What only the real plug-in checks (values, combinations) and
what only Azure knows stays unproven, and the transcription below is by hand, from the documentation of
hashicorp/azurerm (website/docs/r and d; 4.50 and 5.12, and the 5.0 upgrade guide).

Protocol: github.com/hashicorp/terraform docs/plugin-protocol/tfplugin6.proto, over go-plugin's handshake. Messages are
encoded by hand: two kinds of fields are all it takes (protobuf encoding: varints, and lengths before bytes).
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent import futures
from typing import Any

import grpc

STRING, BOOL, NUMBER = "string", "bool", "number"
STRINGS: Any = ["set", "string"]
LIST: Any = ["list", "string"]
MAP: Any = ["map", "string"]
REQUIRED, OPTIONAL, COMPUTED = 4, 5, 6  # field numbers of Schema.Attribute
SINGLE, SEQUENCE, SET = 1, 2, 3  # Schema.NestedBlock.NestingMode

Attributes = dict[str, tuple[Any, int]]
Block = tuple[Attributes, dict[str, tuple[int, "Block"]]]


def _attributes(required: dict[str, Any], optional: dict[str, Any], computed: dict[str, Any]) -> Attributes:
    return {
        **{name: (kind, REQUIRED) for name, kind in required.items()},
        **{name: (kind, OPTIONAL) for name, kind in optional.items()},
        **{name: (kind, COMPUTED) for name, kind in computed.items()},
    }


def strings(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), STRING)


PROVIDER: Block = (
    _attributes({}, strings("subscription_id tenant_id client_id resource_provider_registrations"), {}),
    {
        "features": (
            SEQUENCE,
            (
                {},
                {
                    "key_vault": (
                        SEQUENCE,
                        (
                            _attributes(
                                {},
                                {"purge_soft_delete_on_destroy": BOOL, "recover_soft_deleted_key_vaults": BOOL},
                                {},
                            ),
                            {},
                        ),
                    )
                },
            ),
        )
    },
)
RESOURCES: dict[str, Block] = {
    "azurerm_key_vault": (
        _attributes(
            {**strings("name location resource_group_name sku_name tenant_id"), "rbac_authorization_enabled": BOOL},
            {
                "purge_protection_enabled": BOOL,
                "soft_delete_retention_days": NUMBER,
                "public_network_access_enabled": BOOL,
                "enabled_for_deployment": BOOL,
                "enabled_for_disk_encryption": BOOL,
                "enabled_for_template_deployment": BOOL,
                "tags": MAP,
            },
            strings("id vault_uri"),
        ),
        {
            "network_acls": (
                SEQUENCE,
                (
                    _attributes(
                        strings("bypass default_action"),
                        {"ip_rules": STRINGS, "virtual_network_subnet_ids": STRINGS},
                        {},
                    ),
                    {},
                ),
            )
        },
    ),
    "azurerm_user_assigned_identity": (
        _attributes(
            strings("name location resource_group_name"),
            {"tags": MAP, "isolation_scope": STRING},
            strings("id principal_id client_id tenant_id"),
        ),
        {},
    ),
    "azurerm_federated_identity_credential": (
        _attributes({**strings("name issuer subject user_assigned_identity_id"), "audience": LIST}, {}, strings("id")),
        {},
    ),
    "azurerm_role_assignment": (
        _attributes(
            strings("scope principal_id"),
            {
                **strings("name role_definition_id role_definition_name principal_type condition condition_version"),
                **strings("description delegated_managed_identity_resource_id"),
                "skip_service_principal_aad_check": BOOL,
            },
            strings("id"),
        ),
        {},
    ),
    "azurerm_monitor_diagnostic_setting": (
        _attributes(
            strings("name target_resource_id"),
            strings("log_analytics_workspace_id storage_account_id eventhub_name log_analytics_destination_type"),
            strings("id"),
        ),
        {
            "enabled_log": (SET, (_attributes({}, strings("category category_group"), {}), {})),
            "enabled_metric": (SET, (_attributes(strings("category"), {}, {}), {})),
        },
    ),
}
DATA_SOURCES: dict[str, Block] = {
    "azurerm_client_config": (
        _attributes({}, {}, strings("id tenant_id object_id client_id subscription_id")),
        {},
    ),
    "azurerm_resource_group": (
        _attributes(strings("name"), {}, {**strings("id location managed_by"), "tags": MAP}),
        {},
    ),
}


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _block(block: Block) -> bytes:
    attributes, nested = block
    out = b""
    for name, (kind, way) in attributes.items():
        out += _bytes(2, _bytes(1, name.encode()) + _bytes(2, json.dumps(kind).encode()) + _number(way, 1))
    for name, (mode, inner) in nested.items():
        out += _bytes(3, _bytes(1, name.encode()) + _bytes(2, _block(inner)) + _number(3, mode))
    return out


def _schema(block: Block) -> bytes:
    return _bytes(2, _block(block))


def _entries(field: int, blocks: dict[str, Block]) -> bytes:
    return b"".join(_bytes(field, _bytes(1, n.encode()) + _bytes(2, _schema(b))) for n, b in blocks.items())


def provider_schema() -> bytes:
    """GetProviderSchema.Response."""
    return _bytes(1, _schema(PROVIDER)) + _entries(2, RESOURCES) + _entries(3, DATA_SOURCES)


class Plugin(grpc.GenericRpcHandler):
    """Answers what `terraform validate` asks; every configuration that fits the schema is fine."""

    def __init__(self, ended: threading.Event) -> None:
        self.answers = {
            "/tfplugin6.Provider/GetProviderSchema": provider_schema(),
            "/tfplugin6.Provider/ValidateProviderConfig": b"",
            "/tfplugin6.Provider/ValidateResourceConfig": b"",
            "/tfplugin6.Provider/ValidateDataResourceConfig": b"",
            "/tfplugin6.Provider/StopProvider": b"",
            "/plugin.GRPCController/Shutdown": b"",
        }
        self.ended = ended

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method not in self.answers:
            return None
        if call.method.endswith("/Shutdown"):
            self.ended.set()
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: self.answers[call.method])


def main() -> None:
    ended = threading.Event()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Plugin(ended)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"1|6|tcp|127.0.0.1:{port}|grpc\n")
    sys.stdout.flush()
    ended.wait(60)
    server.stop(1)


if __name__ == "__main__":
    main()
