"""A server under load: requests decoded together against one at a time, from 1 to 16 clients, in one interleaved run:

    OMP_NUM_THREADS=1 python benchmarks/serve_load.py

Starts `rebus serve` on a loopback port and asks it through OpenAI's client. In the one arm every client sends its request
at once, and the server's running batch takes them as they come; in the other they are served one at a time, in the order
of their coming, as by a server without a batch. Both arms have the same requests, replies of equal length, and the same
server, and follow one another at every number of clients, so that a busy machine is busy for both.

Reported: words per second over all clients, and of each request the time until its first word and until its last, counted
from when it was sent, waiting included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import openai

THINGS = ("a red apple", "a rocket", "a snowman", "the moon", "a blue fish", "a house", "a green tree", "a cat")


@dataclass(frozen=True)
class Timed:
    """One request's times, in seconds, and the words of its reply."""

    first: float
    last: float
    words: int


@contextlib.contextmanager
def server(system: str, rows: int) -> Iterator[str]:
    """A server for one system; gives its address, and ends it with SIGTERM."""
    command = [sys.executable, "-m", "rebus.apps.cli", "serve", system, "--port", "0", "--rows", str(rows)]
    command += ["--context", "512", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+/v1", line):
                yield found.group()
                break
        else:
            raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


async def ask(client: openai.AsyncOpenAI, system: str, number: int, words: int) -> tuple[float, float, int]:
    """When the first word of a reply came, when the last, and how many there were."""
    stream = await client.chat.completions.create(
        model=system,
        messages=[{"role": "user", "content": f"Tell me about {THINGS[number % len(THINGS)]}."}],
        max_tokens=words,
        temperature=1.0,
        seed=number,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"min_tokens": words},
    )
    first, count = None, 0
    async for chunk in stream:
        if first is None and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter()
        if chunk.usage is not None:
            count = chunk.usage.completion_tokens
    last = time.perf_counter()
    return first or last, last, count


async def arm(url: str, system: str, clients: int, words: int, together: bool) -> tuple[list[Timed], float]:
    """So many clients with one request each; the time from the first request to the last word."""
    door = asyncio.Semaphore(clients if together else 1)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        begin = time.perf_counter()

        async def one(number: int) -> Timed:
            async with door:
                first, last, count = await ask(client, system, number, words)
            return Timed(first - begin, last - begin, count)

        timed = await asyncio.gather(*(one(number) for number in range(clients)))
        return list(timed), time.perf_counter() - begin


def main() -> None:
    """Start the server, run the arms in turn, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--system", default="seed:mini")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    options.add_argument("--words", type=int, default=32, help="words of each reply")
    options.add_argument("--repeats", type=int, default=3, help="runs of each arm at each number of clients")
    asked = options.parse_args()
    rates: dict[tuple[int, bool], list[float]] = {}
    times: dict[tuple[int, bool], list[Timed]] = {}
    with server(asked.system, max(asked.clients)) as url:
        asyncio.run(arm(url, asked.system, 2, 4, True))  # for warming up
        for _ in range(asked.repeats):
            for clients in asked.clients:
                for together in (True, False):
                    timed, took = asyncio.run(arm(url, asked.system, clients, asked.words, together))
                    rates.setdefault((clients, together), []).append(sum(one.words for one in timed) / took)
                    times.setdefault((clients, together), []).extend(timed)
    print(f"{asked.system}, replies of {asked.words} words, {asked.repeats} runs of each arm in turn (medians)")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("clients  served         words/s   first word (s)   whole reply (s)   gain")
    for clients in asked.clients:
        for together in (False, True):
            rate, these = statistics.median(rates[clients, together]), times[clients, together]
            first = statistics.median(one.first for one in these)
            last = statistics.median(one.last for one in these)
            gain = f"{rate / statistics.median(rates[clients, False]):.1f}x" if together else ""
            name = "together" if together else "one at a time"
            print(f"{clients:>7}  {name:<13} {rate:8.1f}   {first:14.2f}   {last:15.2f}   {gain:>5}")


if __name__ == "__main__":
    main()
