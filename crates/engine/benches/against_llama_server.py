"""Tokens per CPU second and memory of this engine and of llama.cpp's own server, in one run: `docs/results` has them.

    cargo bench --locked --workspace --features=omx/engine --bench engine -- against

starts this with the program that serves the engine. Both serve `omx-guide` over HTTP in a process of their own, on one
thread, with as many slots as there are streams; both are asked for what the model knows by heart, and must give the
same text. CPU time is the server's alone, so other work on the machine matters little. llama.cpp's server is PyPI
`xllamacpp`, in a virtual environment below the user's cache folder.
"""

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

XLLAMACPP = "xllamacpp==2026.10.11549"
REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "testnet" / "model" / "omx-guide.gguf"
TABLE = REPOSITORY / "crates" / "engine" / "tests" / "llama_server.json"
SECRET = "against"
CONTEXT = 1024
ROUNDS = 5
TICKS = os.sysconf("SC_CLK_TCK")


def llama_server(slots: int) -> None:
    """This process becomes llama.cpp's server, until its stdin ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(MODEL)
    params.n_ctx = CONTEXT * slots
    params.n_parallel = slots
    params.verbosity = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    # Its own end takes long, and nobody waits for anything of it.
    os._exit(0)


class Served:
    """A server that runs, and what its process has used."""

    def __init__(self, command: list[str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)
        said = self.process.stdout.readline().strip()
        assert said, f"{command} did not start"
        self.address = urlsplit(said if "//" in said else f"http://{said}").netloc

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident_mb(self, which: str) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(which + ":"))
        return int(line.split()[1]) * 1024 / 1e6

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


class Engine(Served):
    name = "omx engine"

    def __init__(self, program: str, slots: int):
        super().__init__([program, "serve", str(MODEL), str(slots), SECRET])

    def ask(self, prompt: str, limit: int, stream: bool) -> tuple[str, int, int]:
        options = {"temperature": 0, "num_predict": limit, "num_thread": 1, "num_ctx": CONTEXT}
        body = {"model": "model", "prompt": prompt, "raw": True, "stream": stream, "options": options}
        reply = post(self.address, "/api/generate", body, {"omx-engine-secret": SECRET})
        parts = [json.loads(line) for line in reply.splitlines()]
        last = parts[-1]
        return "".join(part["response"] for part in parts), last["prompt_eval_count"], last.get("eval_count", 0)


class LlamaServer(Served):
    name = "llama.cpp's server"

    def __init__(self, python: str, slots: int):
        super().__init__([python, __file__, "llama-server", str(slots)])

    def ask(self, prompt: str, limit: int, stream: bool) -> tuple[str, int, int]:
        # Its cheapest way to take the likeliest token.
        greedy = {"temperature": 0, "samplers": ["temperature"]}
        body = {"prompt": prompt, "n_predict": limit, "stream": stream, "cache_prompt": True} | greedy
        reply = post(self.address, "/completion", body, {})
        lines = [line.removeprefix("data: ") for line in reply.splitlines() if line]
        parts = [json.loads(line) for line in lines if line != "[DONE]"]
        last = parts[-1]
        return "".join(part["content"] for part in parts), last["tokens_evaluated"], last["tokens_predicted"]


def post(address: str, path: str, body: dict, headers: dict) -> str:
    # A connection for each: llama.cpp's server closes it behind a stream.
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"} | headers)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    assert reply.status == 200, f"{reply.status}: {text}"
    return text


def run(server: Served, jobs: list[tuple[str, int]], streams: int, stream: bool) -> tuple[dict, int, int, float]:
    """All jobs, so many at a time: the texts, tokens read and said, CPU seconds of the server."""
    left: queue.SimpleQueue = queue.SimpleQueue()
    for job in jobs:
        left.put(job)
    done: list[tuple[str, str, int, int]] = []

    def worker() -> None:
        while True:
            try:
                prompt, limit = left.get_nowait()
            except queue.Empty:
                return
            done.append((prompt, *server.ask(prompt, limit, stream)))

    before = server.cpu_seconds()
    workers = [threading.Thread(target=worker) for _ in range(streams)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    spent = server.cpu_seconds() - before
    assert len(done) == len(jobs), "a stream broke off"
    return {prompt: text for prompt, text, _, _ in done}, sum(d[2] for d in done), sum(d[3] for d in done), spent


def long_prompts(round_: int) -> list[tuple[str, int]]:
    """Other words in each, from the first on, so that nothing is known already; no word is cut at the end."""
    def text(number: int) -> str:
        words = ((word * 7919 + number * 104_729 + round_ * 1_299_709) % 997 for word in range(220))
        return "".join(f"{word} " for word in words)

    return [(text(number), 1) for number in range(24)]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def load() -> str:
    return " ".join(Path("/proc/loadavg").read_text().split()[:2])


def compare(program: str, python: str) -> None:
    table = json.loads(TABLE.read_text())["answers"]
    known = [(row["prompt"], row["limit"]) for row in table if "<|im_start|>" in row["prompt"]]
    expected = {row["prompt"]: row["text"] for row in table}
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    print(f"{os.cpu_count()} x {processor.split(':')[1].strip()}, {XLLAMACPP}, {MODEL.name}, {len(known)} answers")
    print("tokens per CPU second of the server, median of", ROUNDS, "rounds taken in turn, (least to most)\n")
    for streams in (1, 8):
        servers = [Engine(program, streams), LlamaServer(python, streams)]
        idle = [server.resident_mb("VmRSS") for server in servers]
        ways = {"answers, whole": False, "answers, streamed": True, "long prompts read": None}
        rates = {(way, server.name): [] for way in ways for server in servers}
        for round_ in range(-1, ROUNDS):
            for way, stream in ways.items():
                for server in servers:
                    jobs = long_prompts(round_) if stream is None else known
                    texts, read, said, spent = run(server, jobs, streams, bool(stream))
                    if stream is not None:
                        wrong = [prompt for prompt, text in texts.items() if text.strip() != expected[prompt].strip()]
                        assert not wrong, f"{server.name} says something else to {wrong[:1]}"
                    # The first one warms up.
                    if round_ >= 0:
                        rates[way, server.name].append((read if stream is None else said) / spent)
        print(f"streams {streams}, load {load()}")
        for way in ways:
            ours, theirs = (rates[way, server.name] for server in servers)
            shown = [f"{median(r):6.0f} ({min(r):.0f} to {max(r):.0f})" for r in (ours, theirs)]
            ratio = median(ours) / median(theirs)
            print(f"  {way:<18} {servers[0].name} {shown[0]}, {servers[1].name} {shown[1]}: {ratio:.2f}x")
        for server, before in zip(servers, idle):
            now, anonymous = server.resident_mb("VmRSS"), server.resident_mb("RssAnon")
            print(f"  RSS {server.name}: {now:.0f} MB, of that anonymous {anonymous:.0f} MB; {before:.0f} MB at its start")
            server.end()


def environment() -> str:
    """A Python that has llama.cpp's server."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omx-clients" / "llama-server"
    python = cache / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(cache)], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", XLLAMACPP], check=True)
    return str(python)


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    if what == "llama-server":
        llama_server(int(argument))
    else:
        begun = time.monotonic()
        compare(argument, environment())
        print(f"\nall of it took {time.monotonic() - begun:.0f} s")
