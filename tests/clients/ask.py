"""Asks a node everything in a FAQ through PyPI `ollama`, unchanged: `ask.py FAQ.json`, the node at `OLLAMA_HOST`."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import ollama

MODEL = "omx-guide"
# More than the engine has slots, so that all of them are busy.
AT_ONCE = 8
# Seconds for one answer; every wait here ends.
PATIENCE = 60

client = ollama.Client(timeout=PATIENCE)
greedy = {"temperature": 0}


def chat(question: str, stream: bool) -> str:
    messages = [{"role": "user", "content": question}]
    reply = client.chat(MODEL, messages, stream=stream, options=greedy)
    if not stream:
        assert reply.done and reply.done_reason == "stop" and reply.eval_count > 0, reply
        return reply.message.content
    parts = list(reply)
    assert len(parts) > 1 and parts[-1].done and not any(part.done for part in parts[:-1]), parts
    return "".join(part.message.content for part in parts)


def check(entry: dict, stream: bool) -> None:
    said = chat(entry["question"], stream)
    assert said == entry["answer"], f"{entry['question']!r}, stream={stream}: {said!r}"


def everything_else(entry: dict) -> None:
    assert MODEL in [model.model.split(":")[0] for model in client.list().models]
    assert client.show(MODEL).details.family == "llama"
    assert [model.name.split(":")[0] for model in client.ps().models] == [MODEL]
    vectors = client.embed(MODEL, ["one", "two"]).embeddings
    assert len(vectors) == 2 and all(abs(sum(x * x for x in vector) - 1) < 1e-3 for vector in vectors)
    for stream in (False, True):
        reply = client.generate(MODEL, entry["question"], stream=stream, options=greedy)
        said = "".join(part.response for part in reply) if stream else reply.response
        assert said == entry["answer"], said
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    said = client.chat(MODEL, [{"role": "user", "content": "Hi"}], format=schema, options=greedy).message.content
    assert isinstance(json.loads(said)["n"], int), said
    try:
        client.chat("no-such-model", [{"role": "user", "content": "Hi"}])
    except ollama.ResponseError as error:
        assert error.status_code == 404 and "not found" in error.error, error
    else:
        raise AssertionError("a model that is not there answered")


with open(sys.argv[1], encoding="utf-8") as file:
    faq = json.load(file)
for entry in faq:
    for stream in (False, True):
        check(entry, stream)
with ThreadPoolExecutor(AT_ONCE) as pool:
    list(pool.map(lambda entry: [check(entry, stream) for stream in (True, False)], faq))
everything_else(faq[0])
print(f"PyPI ollama: {len(faq)} questions, each answered exactly 4 times")
