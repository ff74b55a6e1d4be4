"""Taking secrets out of what an engine says, before it is kept, logged or reported (OC-CTRL-2041).

Two nets: the secrets that are known word for word, and what looks like one. The second takes too much
rather than too little, but leaves numbers beside words such as "tokens" alone, which engines log a lot.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

MASK: Final = "[redacted]"
#: Shorter values would also be found by chance in lines that tell nothing.
_KNOWN_CHARS_MIN: Final = 8

_SECRET_NAME: Final = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
_VALUE: Final = r"""(?:"[^"]*"|'[^']*'|[^\s"']+)"""
#: A name's end, an optional quote around the name, and what stands between name and value. Bounded, as all
#: that comes before a fixed text here: a long line must not take quadratic time.
_IS: Final = r"""\w{0,64}["']?\s{0,8}[=:]\s{0,8}"""

#: Words of which a line must hold one, in small letters, before it is searched for what looks like a secret: most
#: lines hold none, and engines write many. What stays of a match is its first group.
_SHAPES: Final = tuple(
    (words, re.compile(pattern))
    for words, pattern in (
        (("bearer", "basic"), r"(?i)(\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}"),
        (("key",), rf"(?i)(api[-_]?key{_IS}(?:bearer\s+)?){_VALUE}"),
        (("key",), rf"(?i)(--?api[-_]key\s+){_VALUE}"),
        (
            ("secret", "passw", "passphrase", "credential"),
            rf"(?i)((?:secret|passw(?:or)?d|passphrase|credentials?){_IS}){_VALUE}",
        ),
        (
            ("key", "token"),
            rf"(?i)((?:access|account|auth|client|hf|hub|private|refresh|session)[-_]?(?:key|token){_IS}){_VALUE}",
        ),
        # Assignments as an environment has them.
        (("secret", "token", "passw", "key"), rf"((?:SECRET|TOKEN|PASSW|KEY)[A-Z0-9_]{{0,64}}=){_VALUE}"),
        (("token=",), r"(?i)((?<![a-z_])token=)[^\s\"',;&]{8,}"),
        (("://",), r"([a-z][a-z0-9+.-]{0,32}://)[^\s/?#]+(?=@)"),
        (("akia", "asia"), r"(\b)(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
        (("hf_",), r"(\b)hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,})\b"),
        (("gh", "glpat-", "nvapi-"), r"(\b)(?:gh[opsur]_|github_pat_|glpat-|nvapi-)[A-Za-z0-9_-]{12,}"),
        (("sk-", "xox"), r"(\b)(?:sk-|xox[abps]-)[A-Za-z0-9_-]{12,}"),
        (("eyj",), r"(\b)eyJ[A-Za-z0-9_-]{8,512}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"),
    )
)


def redact(line: str, secrets: Sequence[str] = ()) -> str:
    """`line` without the known `secrets` and without what looks like one."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _KNOWN_CHARS_MIN:
            line = line.replace(secret, MASK)
    lowered = line.lower()
    for words, shape in _SHAPES:
        if any(word in lowered for word in words):
            line = shape.sub(rf"\1{MASK}", line)
    return line


def secret_values(env: Mapping[str, str]) -> tuple[str, ...]:
    """The values of an environment whose names say that they are secret."""
    return tuple(value for name, value in env.items() if _SECRET_NAME.search(name))
