"""One adapter per trust system: observe it, write its bundle, switch its issuer, restart it, prove it. No Prefect."""
