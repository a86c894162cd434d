"""The lab's Citadel, the certificate authority of Istio 1.4 and older: a Secret per service account."""
