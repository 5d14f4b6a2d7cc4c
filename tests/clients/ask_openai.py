"""PyPI `openai`, unchanged, asks a node that has no model of its own, behind `/v1`; its key is in `OPENAI_API_KEY`."""

import asyncio
import json

import openai

from mesh import ABSENT, AT_ONCE, FAKE, FAQ, GUIDE, HOST, PATIENCE, SCHEMA, asked, close, everything_asked, refused, same

settings = {"base_url": f"{HOST}/v1", "timeout": PATIENCE, "max_retries": 0}
client = openai.OpenAI(**settings)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


def whole(model: str, question: str) -> str:
    reply = client.chat.completions.create(model=model, messages=asked(question), temperature=0)
    assert reply.object == "chat.completion" and reply.model == model and reply.choices[0].finish_reason == "stop", reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0, reply
    return reply.choices[0].message.content


def streamed(model: str, question: str) -> str:
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=model, messages=asked(question), temperature=0, stream=True, stream_options=options
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1, chunks
    *chunks, last = chunks
    assert last.choices == [] and last.usage.completion_tokens > 0, last
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"], choices
    return "".join(choice.delta.content or "" for choice in choices)


def check(entry: dict) -> None:
    for ask in (whole, streamed):
        same(ask(GUIDE, entry["question"]), entry["answer"])


def completions(model: str, prompt: str, answer: str) -> None:
    same(client.completions.create(model=model, prompt=prompt, temperature=0).choices[0].text, answer)
    chunks = client.completions.create(model=model, prompt=prompt, temperature=0, stream=True)
    same("".join(chunk.choices[0].text for chunk in chunks), answer)


def the_engine(entry: dict) -> None:
    completions(GUIDE, entry["question"], entry["answer"])
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    reply = client.chat.completions.create(model=GUIDE, messages=asked("Hi"), response_format=form, temperature=0)
    assert isinstance(json.loads(reply.choices[0].message.content)["n"], int), reply


def the_stand_in() -> None:
    model = FAKE["completion"]
    for ask in (whole, streamed):
        same(ask(model, "Count."), FAKE["answer"])
    completions(model, "Count.", FAKE["answer"])
    cut = client.chat.completions.create(model=model, messages=asked("Count."), max_tokens=3).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("t0 t1 t2", "length"), cut
    cut = client.chat.completions.create(model=model, messages=asked("Count."), stop=[" t4"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("t0 t1 t2 t3", "stop"), cut


def tools() -> None:
    model, question = FAKE["tools"], asked("Will it rain?")
    reply = client.chat.completions.create(model=model, messages=question, tools=[TOOL]).choices[0]
    (call,) = reply.message.tool_calls
    assert reply.finish_reason == "tool_calls" and call.id and call.type == "function", reply
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "t0", "days": 0}), call
    # Put together from its chunks by the client itself.
    with client.chat.completions.stream(model=model, messages=question, tools=[TOOL]) as stream:
        (again,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments), again
    result = {"role": "tool", "tool_call_id": call.id, "content": "It will."}
    messages = [*question, reply.message.model_dump(exclude_none=True), result]
    told = client.chat.completions.create(model=model, messages=messages, tools=[TOOL]).choices[0]
    assert (told.message.content, told.finish_reason) == (FAKE["answer"], "stop"), told


def embeddings() -> None:
    model, texts = FAKE["embedding"], ["one", "two", "one"]
    # Without a format the client asks for base64 and reads it itself.
    packed = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1, 2] and packed.usage.prompt_tokens > 0, packed
    assert len(plain.data[0].embedding) == FAKE["dimensions"]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert close(one.embedding, other.embedding), (one, other)
    assert plain.data[0].embedding == plain.data[2].embedding != plain.data[1].embedding
    assert len(client.embeddings.create(model=model, input="one", dimensions=16).data[0].embedding) == 16


def models() -> None:
    ids = {model.id for model in client.models.list()}
    assert ids == {f"{GUIDE}:latest", FAKE["completion"], FAKE["tools"], FAKE["embedding"]}, ids
    for model in ids:
        assert client.models.retrieve(model).id == model


def refusals() -> None:
    asks = (
        lambda: client.chat.completions.create(model=ABSENT, messages=asked("Hi")),
        lambda: client.chat.completions.create(model=ABSENT, messages=asked("Hi"), stream=True),
        lambda: client.completions.create(model=ABSENT, prompt="Hi"),
        lambda: client.embeddings.create(model=ABSENT, input="Hi"),
        lambda: client.models.retrieve(ABSENT),
    )
    for ask in asks:
        error = refused(openai.NotFoundError, ask)
        assert ABSENT in error.message and error.body["type"] == "not_found_error", error
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model=GUIDE, messages=[]))
    assert error.body["type"] == "invalid_request_error", error
    incapable = lambda: client.chat.completions.create(model=FAKE["completion"], messages=asked("Hi"), tools=[TOOL])
    assert "does not support tools" in refused(openai.BadRequestError, incapable).message


async def at_once() -> None:
    async with openai.AsyncOpenAI(**settings) as client:
        ask = lambda: client.chat.completions.create(model=FAKE["completion"], messages=asked("Count."))
        for reply in await asyncio.gather(*(ask() for _ in range(AT_ONCE))):
            same(reply.choices[0].message.content, FAKE["answer"])


everything_asked(check)
the_engine(FAQ[0])
the_stand_in()
tools()
embeddings()
models()
refusals()
asyncio.run(at_once())
print(f"PyPI openai: {len(FAQ)} questions, each answered exactly twice")
