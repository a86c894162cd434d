"""What a real istiod 1.14 answered, as recorded in tests/vectors/controllers, is understood."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from capstan.pki.inspect import Certificate
from capstan.systems.istio.ca_client import Signed, decode_response, read_answer
from tests.support.mesh import encode_elements

TRACES = Path(__file__).parents[2] / "vectors" / "controllers" / "istiod"
_PEM = re.compile(r"<pem:(cert-\d+)>")


class Trace:
    """One recorded scenario."""

    def __init__(self, path: Path) -> None:
        self.content: dict[str, Any] = json.loads(path.read_text())
        self.certs = {
            name: Certificate.from_pem(value["pem"])
            for name, value in self.content["certs"].items()
            if value.get("pem")
        }

    def answers(self) -> list[tuple[list[str], list[str]]]:
        """Per signed request: the certificates' aliases in each element, and the elements' texts."""
        found = []
        for event in self.content["events"]:
            if event.get("source") == "grpc" and event.get("code") == "OK":
                texts = event["response"]["cert_chain"]
                found.append(([",".join(_PEM.findall(text)) for text in texts], [self._plain(text) for text in texts]))
        return found

    def _plain(self, text: str) -> str:
        return _PEM.sub(lambda match: self.certs[match[1]].pem(), text)

    def read(self, texts: list[str]) -> Signed:
        elements = decode_response(encode_elements(*texts), "a recorded istiod")
        leaf = Certificate.from_pem(texts[0])
        return read_answer(elements, spki=leaf.public_key, serving=(), where="a recorded istiod")


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.json")), ids=lambda path: path.stem)
def test_every_recorded_answer_is_read_for_what_it_says(path):
    trace = Trace(path)
    for aliases, texts in trace.answers():
        signed = trace.read(texts)
        assert signed.leaf == trace.certs[aliases[0]]
        assert signed.leaf.signed_by(signed.chain[0])
        assert signed.roots.certificates == tuple(trace.certs[name] for name in aliases[-1].split(","))


def test_a_recorded_rotation_of_the_root_is_seen_as_its_three_phases():
    trace = Trace(TRACES / "06-plugin-root-rotation-by-restart.json")
    names = {certificate.fingerprint: name for name, certificate in trace.certs.items()}
    phases = []
    for _, texts in trace.answers():
        signed = trace.read(texts)
        phases.append((names[signed.chain[0].fingerprint], [names[item.fingerprint] for item in signed.roots]))
    assert phases == [
        ("cert-2", ["cert-1"]),
        ("cert-2", ["cert-1", "cert-3"]),
        ("cert-4", ["cert-1", "cert-3"]),
        ("cert-4", ["cert-3"]),
    ]


def test_a_recorded_self_signed_istiod_signs_with_its_root():
    trace = Trace(TRACES / "01-self-signed-first-start.json")
    signed = [trace.read(texts) for _, texts in trace.answers()]
    assert len(signed) == 3
    assert all(item.chain == item.roots.certificates for item in signed)
