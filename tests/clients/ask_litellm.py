"""PyPI `litellm`, unchanged, asks a node that has no model of its own: as Ollama's client and as OpenAI's.

The key for the latter is in `OPENAI_API_KEY`.
"""

import asyncio
import json
import os

# Else it asks GitHub for the prices of models as it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from mesh import ABSENT, AT_ONCE, FAKE, FAQ, GUIDE, HOST, PATIENCE, asked, close, everything_asked, refused, same

import litellm
import ollama

litellm.telemetry = False
# Where it is refused it would print where its makers are found.
litellm.suppress_debug_info = True
beside = ollama.Client(FAKE["url"], timeout=PATIENCE)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def where(kind: str) -> dict:
    if kind == "openai":
        return {"api_base": f"{HOST}/v1", "timeout": PATIENCE, "max_retries": 0}
    return {"api_base": HOST, "timeout": PATIENCE}


def whole(kind: str, model: str, question: str) -> str:
    reply = litellm.completion(model=f"{kind}/{model}", messages=asked(question), temperature=0, **where(kind))
    assert reply.choices[0].finish_reason == "stop" and reply.usage.completion_tokens > 0, reply
    return reply.choices[0].message.content


def streamed(kind: str, model: str, question: str) -> str:
    more = where(kind) | {"stream": True, "temperature": 0}
    choices = [chunk.choices[0] for chunk in litellm.completion(f"{kind}/{model}", asked(question), **more)]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"], choices
    return "".join(choice.delta.content or "" for choice in choices)


def check(entry: dict) -> None:
    for ask, kind in ((whole, "ollama_chat"), (streamed, "openai")):
        same(ask(kind, GUIDE, entry["question"]), entry["answer"])


def the_stand_in(kind: str) -> None:
    for ask in (whole, streamed):
        same(ask(kind, FAKE["completion"], "Count."), FAKE["answer"])
    cut = litellm.completion(f"{kind}/{FAKE['completion']}", asked("Count."), max_tokens=3, **where(kind))
    same(cut.choices[0].message.content, "t0 t1 t2")


def tools(kind: str) -> None:
    model, question = f"{kind}/{FAKE['tools']}", asked("Will it rain?")
    reply = litellm.completion(model, question, tools=[TOOL], **where(kind)).choices[0]
    (call,) = reply.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "t0"}), call
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "It will."}
    told = litellm.completion(model, [*question, reply.message.model_dump(), result], tools=[TOOL], **where(kind))
    same(told.choices[0].message.content, FAKE["answer"])


def embedding(kind: str) -> None:
    texts = ["one", "two", "one"]
    more = where(kind) | ({"encoding_format": "float"} if kind == "openai" else {})
    said = litellm.embedding(f"{kind}/{FAKE['embedding']}", input=texts, **more)
    expected = [list(vector) for vector in beside.embed(FAKE["embedding"], texts).embeddings]
    for one, other in zip(said.data, expected, strict=True):
        assert close(one["embedding"], other), (one, other)


def refusals() -> None:
    for kind in ("ollama_chat", "ollama", "openai"):
        for ask in (whole, streamed):
            error = refused(litellm.NotFoundError, lambda: ask(kind, ABSENT, "Hi"))
            assert f"model '{ABSENT}' not found" in str(error), error


async def at_once(kind: str) -> None:
    ask = lambda: litellm.acompletion(f"{kind}/{FAKE['completion']}", asked("Count."), **where(kind))
    for reply in await asyncio.gather(*(ask() for _ in range(AT_ONCE))):
        same(reply.choices[0].message.content, FAKE["answer"])


everything_asked(check)
for streaming in (whole, streamed):
    for kind in ("ollama_chat", "openai"):
        same(streaming(kind, GUIDE, FAQ[0]["question"]), FAQ[0]["answer"])
for kind in ("ollama_chat", "ollama", "openai"):
    the_stand_in(kind)
    embedding("ollama" if kind == "ollama_chat" else kind)
for kind in ("ollama_chat", "openai"):
    tools(kind)
    asyncio.run(at_once(kind))
refusals()
print(f"PyPI litellm: {len(FAQ)} questions, each answered exactly twice")
