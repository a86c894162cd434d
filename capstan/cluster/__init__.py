"""One Kubernetes cluster as Capstan needs it: raw objects in, raw objects out, every failure an error of our tree.

No Prefect, and no X.509 beyond the bytes of a handshake: what a certificate means is `capstan.pki`'s business.
"""
