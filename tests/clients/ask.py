"""PyPI `ollama`, unchanged, asks a node that has no model of its own for everything the mesh has."""

import json

import ollama

from mesh import ABSENT, FAKE, FAQ, GUIDE, HOST, PATIENCE, SCHEMA, asked, everything_asked, refused, same

client = ollama.Client(HOST, timeout=PATIENCE)
# The stand-in itself: what a client finds there it must find behind the mesh too.
beside = ollama.Client(FAKE["url"], timeout=PATIENCE)
greedy = {"temperature": 0}


def chat(model: str, question: str, stream: bool) -> str:
    reply = client.chat(model, asked(question), stream=stream, options=greedy)
    if not stream:
        assert reply.done and reply.done_reason == "stop" and reply.eval_count > 0, reply
        return reply.message.content
    parts = list(reply)
    assert len(parts) > 1 and parts[-1].done and not any(part.done for part in parts[:-1]), parts
    return "".join(part.message.content for part in parts)


def generate(model: str, question: str, stream: bool) -> str:
    reply = client.generate(model, question, stream=stream, options=greedy)
    return "".join(part.response for part in reply) if stream else reply.response


def check(entry: dict) -> None:
    for stream in (True, False):
        same(chat(GUIDE, entry["question"], stream), entry["answer"])


def the_engine(entry: dict) -> None:
    assert client.show(GUIDE).details.family == "llama"
    vectors = client.embed(GUIDE, ["one", "two"]).embeddings
    assert len(vectors) == 2 and all(abs(sum(x * x for x in vector) - 1) < 1e-3 for vector in vectors)
    for stream in (False, True):
        same(generate(GUIDE, entry["question"], stream), entry["answer"])
    said = client.chat(GUIDE, asked("Hi"), format=SCHEMA, options=greedy).message.content
    assert isinstance(json.loads(said)["n"], int), said


def the_stand_in() -> None:
    model, tools, vectors = FAKE["completion"], FAKE["tools"], FAKE["embedding"]
    for stream in (False, True):
        same(chat(model, "Count.", stream), FAKE["answer"])
        same(generate(model, "Count.", stream), FAKE["answer"])
    for one in (model, tools, vectors):
        assert client.show(one) == beside.show(one), one
    texts = ["one", "two", "one"]
    assert client.embed(vectors, texts).embeddings == beside.embed(vectors, texts).embeddings
    assert client.embed(vectors, "one", dimensions=16) != client.embed(vectors, "one")
    assert client.embeddings(vectors, "one").embedding == beside.embeddings(vectors, "one").embedding

    def weather(city: str, days: int) -> str:
        """Tells the weather.

        Args:
          city: where
          days: for how long
        """

    for stream in (False, True):
        reply = client.chat(tools, asked("Will it rain?"), tools=[weather], stream=stream)
        calls = [call for part in (reply if stream else [reply]) for call in part.message.tool_calls or []]
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", {"city": "t0", "days": 0})
        ], calls
    result = {"role": "tool", "tool_name": "weather", "content": "It will."}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "t0"}}}]}
    said = client.chat(tools, [*asked("Will it rain?"), called, result], tools=[weather]).message.content
    same(said, FAKE["answer"])
    error = refused(ollama.ResponseError, lambda: client.chat(model, asked("Will it rain?"), tools=[weather]))
    assert error.status_code == 400 and "does not support tools" in error.error, error


def the_mesh() -> None:
    """Both were asked, so what runs is on two nodes, neither of them the one that is asked."""
    fakes = [FAKE["completion"], FAKE["tools"], FAKE["embedding"]]
    assert {f"{GUIDE}:latest", *fakes} == {model.model for model in client.list().models}
    running = {model.name for model in client.ps().models}
    assert {f"{GUIDE}:latest", *fakes} == running, running
    for stream in (False, True):
        error = refused(ollama.ResponseError, lambda: list(client.chat(ABSENT, asked("Hi"), stream=stream)))
        assert error.status_code == 404 and "not found" in error.error, error
    for ask in (client.show, lambda model: client.embed(model, "one"), lambda model: client.generate(model, "Hi")):
        assert refused(ollama.ResponseError, lambda: ask(ABSENT)).status_code == 404


for entry in FAQ:
    check(entry)
everything_asked(check)
the_engine(FAQ[0])
the_stand_in()
the_mesh()
print(f"PyPI ollama: {len(FAQ)} questions, each answered exactly 4 times")
