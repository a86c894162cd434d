"""Certificates, bundles and keys. Pure: no I/O; time and randomness are arguments.

inspect   one certificate        keys    a private key that is never shown
pem       how readers see text   bundle  an ordered set of certificates with one text form
mint      new roots, issuers     rules   what a root, an issuer, a bundle must be
verify    two independent verifiers that must agree
"""
