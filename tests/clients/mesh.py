"""What the Python clients are told of the mesh: `ask_….py MESH.json`, the node to ask at `OLLAMA_HOST`.

Nothing but this machine may be asked: a client that tries to tell somebody else of its use fails here.
"""

import ipaddress
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

# More than the engine has slots, so that all of them are busy.
AT_ONCE = 8
# Seconds for one answer; every wait here ends.
PATIENCE = 60

HOST = os.environ["OLLAMA_HOST"]

with open(sys.argv[1], encoding="utf-8") as file:
    _told = json.load(file)
# The engine's model, and what it answers word for word.
GUIDE = "omx-guide"
FAQ = _told["faq"]
# Ollama's stand-in behind another node: what it has, and what all of its models answer.
FAKE = _told["fake"]

ABSENT = "no-such-model"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def asked(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def everything_asked(check: Callable[[dict], None]) -> None:
    """The whole FAQ, as much at once as keeps everybody busy."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(check, FAQ))


def same(said: str, expected: str) -> None:
    assert said == expected, f"{said!r} instead of {expected!r}"


def close(vector: list[float], other: list[float]) -> bool:
    """What OpenAI's clients are told has single precision."""
    return all(abs(a - b) < 1e-6 for a, b in zip(vector, other, strict=True))


def refused(kind: type[Exception], ask: Callable[[], object]) -> Exception:
    try:
        said = ask()
    except kind as error:
        return error
    raise AssertionError(f"answered where {kind.__name__} was to be raised: {said!r}")


def _stay_here(event: str, arguments: tuple) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        # Whoever tells of its use passes over what is raised while it does, so this ends the process.
        print(f"a client turned to `{host}`", file=sys.stderr, flush=True)
        os._exit(3)


sys.addaudithook(_stay_here)
