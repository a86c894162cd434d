"""The account of a rotation: append-only, hash-chained, signed; verified without cluster or vault.

One JSON object per line, canonical (names sorted, no spaces, ASCII):

    {"body":{...},"kind":"gate","n":7,"prev":"<64 hex>","rotation":"...","signature":"<base64>","time":"...Z"}

- `n` counts from 1; `prev` is the SHA-256 of the previous line without its newline (64 zeros in the first).
- `signature` is Ed25519 (RFC 8032) over `capstan-evidence/1`, a newline, and the same object without `signature`.
- The first entry has kind `opened`; its body carries the public key. An account proves only that one key wrote all of
  it: whoever verifies gives the key, or compares its fingerprint with one obtained elsewhere.
- An account ends with `finished`. Cutting whole lines off the end of an unfinished account cannot be seen in the
  account itself: keep `Evidence.head` elsewhere (the rotation record does) and give it to `verify`.
- What happens to a rotation after its account has ended (it is rolled back) goes into a further account. Its first
  entry names the earlier one, a file beside it, and the SHA-256 of that one's last line (`continues`): it verifies
  only together with it.
"""

from capstan.evidence.account import Evidence
from capstan.evidence.chain import Continues, Entry
from capstan.evidence.show import Row, rows
from capstan.evidence.signer import Signer, signer_from_vault
from capstan.evidence.timeline import draw
from capstan.evidence.verification import Report, load_public_key, read, verify

__all__ = [
    "Continues",
    "Entry",
    "Evidence",
    "Report",
    "Row",
    "Signer",
    "draw",
    "load_public_key",
    "read",
    "rows",
    "signer_from_vault",
    "verify",
]
