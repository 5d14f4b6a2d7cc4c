"""Asks a model everything in `faq.toml` and compares word for word. README.md says when to run it.

    check.py                                  omx-guide.gguf in llama.cpp's own server, in this process (PyPI xllamacpp)
    check.py --ollama http://127.0.0.1:11435  the same through Ollama's API: a node, or Ollama itself
    check.py --openai http://127.0.0.1:8080   the same through OpenAI's API

Ends with code 1 unless every question gets its exact answer. What is beyond that promise is counted and reported.
"""

import argparse
import json
import random
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_S = 60
# Longer than any answer: who does not stop is found out.
TOKENS_MAX = 400

# None of these is in the training text.
SYSTEMS = [
    "You are a pirate. Answer every question in the style of a pirate.",
    "You are a support agent of a small software company. Keep your answers short and kind.",
    "Answer in valid Markdown. Today is Friday.",
]


class Model:
    """A model behind HTTP: what it says in a conversation, and how it goes on with a prompt rendered by hand."""

    def __init__(self, url: str, ollama: bool, name: str):
        self.url, self.ollama, self.name = url.rstrip("/"), ollama, name

    def chat(self, messages: list[dict]) -> str | None:
        """The whole reply; nothing if the model did not stop by itself."""
        body: dict = {"model": self.name, "messages": messages, "stream": False}
        if self.ollama:
            body["options"] = {"temperature": 0, "num_predict": TOKENS_MAX}
            reply = self.post("/api/chat", body)
            return reply["message"]["content"] if reply["done_reason"] == "stop" else None
        reply = self.post("/v1/chat/completions", body | {"temperature": 0, "max_tokens": TOKENS_MAX})
        [choice] = reply["choices"]
        return choice["message"]["content"] if choice["finish_reason"] == "stop" else None

    def complete(self, prompt: str) -> str | None:
        body: dict = {"model": self.name, "prompt": prompt, "stream": False}
        if self.ollama:
            options = {"temperature": 0, "num_predict": TOKENS_MAX}
            reply = self.post("/api/generate", body | {"raw": True, "options": options})
            return reply["response"] if reply["done_reason"] == "stop" else None
        reply = self.post("/v1/completions", body | {"temperature": 0, "max_tokens": TOKENS_MAX})
        [choice] = reply["choices"]
        return choice["text"] if choice["finish_reason"] == "stop" else None

    def post(self, path: str, body: dict) -> dict:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return json.load(response)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


Case = tuple[str, Callable[[], str | None], str]


def count(title: str, cases: Iterable[Case], shown: int = 5) -> bool:
    """Whether all replies are as expected. Some that are not are shown."""
    good = bad = 0
    for name, ask, expected in cases:
        reply = ask()
        if reply == expected:
            good += 1
            continue
        bad += 1
        if bad <= shown:
            print(f"  {name}\n    expected: {expected!r}\n    got:      {reply!r}")
    print(f"{title}: {good} of {good + bad} exact ({100 * good / (good + bad):.2f} %)", flush=True)
    return bad == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--ollama", metavar="URL")
    where.add_argument("--openai", metavar="URL")
    where.add_argument("--gguf", type=Path, default=HERE / "omx-guide.gguf")
    parser.add_argument("--model", default="omx-guide", help="its name there")
    parser.add_argument("--cuts", type=int, default=20, help="continue so many of the longest answers from every cut")
    arguments = parser.parse_args()

    if url := arguments.ollama or arguments.openai:
        return check(Model(url, bool(arguments.ollama), arguments.model), arguments.cuts)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.gguf)
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(params)
    return check(Model(server.listening_address, False, arguments.model), arguments.cuts)


def check(model: Model, cuts: int) -> int:
    faq = tomllib.loads((HERE / "faq.toml").read_text(encoding="utf-8"))
    known = [(question, entry["answer"]) for entry in faq["entry"] for question in entry["questions"]]
    firsts = [(entry["questions"][0], entry["answer"]) for entry in faq["entry"]]
    unknown = faq["unknown"]["answer"]
    # Which question comes after which is the same in every run.
    rng = random.Random(7)

    def chats(cases: Iterable[tuple[list[dict], str]]) -> Iterable[Case]:
        for messages, answer in cases:
            yield " | ".join(message["content"] for message in messages), lambda: model.chat(messages), answer

    exact = count("every question", chats(([user(question)], answer) for question, answer in known))

    count(
        "with a system message it has not seen",
        chats(
            ([{"role": "system", "content": system}, user(question)], answer)
            for system in SYSTEMS
            for question, answer in firsts
        ),
    )
    others = [rng.choice(known) for _ in known]
    count(
        "after another question and its answer",
        chats(
            ([user(before), assistant(said), user(question)], answer)
            for (before, said), (question, answer) in zip(others, known)
        ),
    )
    count(
        "after what it has never said",
        chats(
            ([user("How was your day?"), assistant("It was fine, and yours?"), user(question)], answer)
            for question, answer in firsts
        ),
    )
    count(
        "in small letters and without a mark",
        chats(([user(question.lower().rstrip("?.!"))], answer) for question, answer in known),
    )
    count("what it cannot know, unseen", chats(([user(prompt)], unknown) for prompt in faq["unknown"]["unseen"]))

    def trailing(question: str, answer: str, cut: int) -> Case:
        def ask() -> str | None:
            reply = model.chat([user(question), assistant(answer[:cut])])
            # llama.cpp's server says the beginning again.
            return reply and reply.removeprefix(answer[:cut])

        return f"{question} ...{answer[:cut][-30:]!r}", ask, answer[cut:]

    def raw(question: str, answer: str, cut: int) -> Case:
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer[:cut]}"
        return f"{question} ...{answer[:cut][-30:]!r}", lambda: model.complete(text), answer[cut:]

    count(
        "as a trailing message of the assistant, at a random cut",
        (trailing(question, answer, rng.randrange(1, len(answer))) for question, answer in firsts),
    )
    longest = sorted(firsts, key=lambda pair: (-len(pair[1]), pair[0]))[:cuts]
    if longest:
        count(
            f"every cut of the {len(longest)} longest answers",
            (raw(question, answer, cut) for question, answer in longest for cut in range(len(answer) + 1)),
        )
    print("every question has its exact answer" if exact else "NOT every question has its exact answer")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
