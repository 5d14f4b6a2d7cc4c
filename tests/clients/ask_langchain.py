"""PyPI `langchain-ollama`, unchanged, asks a node that has no model of its own."""

import asyncio

import ollama
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM

from mesh import ABSENT, AT_ONCE, FAKE, FAQ, GUIDE, HOST, PATIENCE, SCHEMA, everything_asked, refused, same

common = {"base_url": HOST, "client_kwargs": {"timeout": PATIENCE}}
beside = ollama.Client(FAKE["url"], timeout=PATIENCE)


def chat(model: str, **more: object) -> ChatOllama:
    return ChatOllama(model=model, temperature=0, validate_model_on_init=True, **common, **more)


guide, fake = chat(GUIDE), chat(FAKE["completion"])


def check(entry: dict) -> None:
    same(guide.invoke(entry["question"]).content, entry["answer"])
    same("".join(chunk.content for chunk in guide.stream(entry["question"])), entry["answer"])


def the_engine(entry: dict) -> None:
    said = guide.with_structured_output(SCHEMA | {"title": "n"}, method="json_schema").invoke("Hi")
    assert isinstance(said["n"], int), said
    llm = OllamaLLM(model=GUIDE, temperature=0, **common)
    same(llm.invoke(entry["question"]), entry["answer"])
    same("".join(llm.stream(entry["question"])), entry["answer"])


def the_stand_in() -> None:
    reply = fake.invoke("Count.")
    same(reply.content, FAKE["answer"])
    assert reply.response_metadata["done_reason"] == "stop" and reply.usage_metadata["output_tokens"] > 0, reply
    same("".join(chunk.content for chunk in fake.stream("Count.")), FAKE["answer"])
    assert [one.content for one in fake.batch(["Count."] * AT_ONCE)] == [FAKE["answer"]] * AT_ONCE
    same(chat(FAKE["completion"], num_predict=3).invoke("Count.").content, "t0 t1 t2")


async def the_same_without_waiting() -> None:
    same((await fake.ainvoke("Count.")).content, FAKE["answer"])
    same("".join([chunk.content async for chunk in fake.astream("Count.")]), FAKE["answer"])


@tool
def weather(city: str, days: int) -> str:
    """Tells the weather."""
    return f"{city}: rain for {days} days"


def tools() -> None:
    bound = chat(FAKE["tools"]).bind_tools([weather])
    question = HumanMessage("Will it rain?")
    reply = bound.invoke([question])
    (call,) = reply.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "t0", "days": 0}) and call["id"], call
    streamed = sum(bound.stream([question]), AIMessageChunk(content=""))
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [(call["name"], call["args"])], streamed
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage), result
    same(bound.invoke([question, reply, result]).content, FAKE["answer"])


def embeddings() -> None:
    texts = ["one", "two", "one"]
    model = OllamaEmbeddings(model=FAKE["embedding"], **common)
    expected = [list(vector) for vector in beside.embed(FAKE["embedding"], texts).embeddings]
    assert model.embed_documents(texts) == expected
    assert model.embed_query("two") == expected[1]


def refusals() -> None:
    assert refused(ollama.ResponseError, lambda: ChatOllama(model=ABSENT, **common).invoke("Hi")).status_code == 404
    incapable = lambda: fake.bind_tools([weather]).invoke("Hi")
    assert "does not support tools" in str(refused(ollama.ResponseError, incapable))
    # This one looks for the model in the list before it asks.
    assert ABSENT in str(refused(ValueError, lambda: chat(ABSENT)))


everything_asked(check)
the_engine(FAQ[0])
the_stand_in()
asyncio.run(the_same_without_waiting())
tools()
embeddings()
refusals()
print(f"PyPI langchain-ollama: {len(FAQ)} questions, each answered exactly twice")
