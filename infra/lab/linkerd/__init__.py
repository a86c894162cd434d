"""Linkerd in the lab: identity, injector and data plane as clients of any Kubernetes API."""

import os

# gRPC's C core prints every refused handshake to stderr; here they are part of the play and reported by the proxies.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
