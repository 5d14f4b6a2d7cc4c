"""Writes `llama_server.json`: what llama.cpp's own server makes of `omx-guide`, for `guide.rs` to compare with.

To be run after the model was trained anew, with PyPI `xllamacpp` (2026.10.11549 at the time of writing).
"""

import json
import tomllib
import urllib.request
from pathlib import Path

import xllamacpp

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "testnet" / "model"

TEXTS = [
    "",
    "Hello",
    "What is OllamaMax?",
    " leading blank",
    "trailing blank ",
    "two\n\nlines\tand a tab",
    "naïve café 中文 😀",
    "<|im_start|>user\nHi<|im_end|>\n",
    "0123456789 3.14 -1e9",
    '`omx up` `--join TOKEN` {"a":[1,2]}',
    "ALL CAPS and lower",
    "don't can't we'll I'm",
    "x" * 40,
    "a b  c   d    e",
    "\r\nCRLF\r\n",
    "~!@#$%^&*()_+|}{[]:;'<>?,./",
]

# Beyond what it knows by heart.
BEGINNINGS = ["The mesh", "A node is", "Once upon a time", " and then", "What?", "raft"]


def main() -> None:
    params = xllamacpp.CommonParams()
    params.model.path = str(MODEL / "omx-guide.gguf")
    params.n_ctx = 1024
    params.n_parallel = 1
    server = xllamacpp.Server(params)

    def post(path: str, body: dict) -> dict:
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def ids(text: str) -> list[int]:
        return post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def answer(prompt: str, limit: int) -> str:
        greedy = {"temperature": 0, "n_predict": limit, "cache_prompt": False}
        return post("/completion", {"prompt": prompt} | greedy)["content"]

    def asked(question: str) -> str:
        return post("/apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"]

    entries = tomllib.loads((MODEL / "faq.toml").read_text())["entry"]
    prompts = [(asked(entry["questions"][0]), 400) for entry in entries] + [(text, 40) for text in BEGINNINGS]
    table = {
        "tokens": [{"text": text, "ids": ids(text)} for text in TEXTS],
        "answers": [{"prompt": prompt, "limit": limit, "text": answer(prompt, limit)} for prompt, limit in prompts],
    }
    (HERE / "llama_server.json").write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n")


main()
