"""What an engine says: whole, counted, ended, the same for the same seed, and refused where it must be."""

import asyncio
from typing import Final

from adapters.testing.conformance.cases import expect
from adapters.testing.conformance.outcome import Outcome, collect
from adapters.testing.conformance.subject import Bench, behaviour
from contracts.api import Message, Sampling
from contracts.engine import EngineError, GenerateRequest

_SEEDS: Final = (1, 2, 3, 4)
_MULTIBYTE_TRIES: Final = 4


@behaviour.case()
async def one_end(bench: Bench) -> None:
    """A generation gives text and exactly one Finish, at the end."""
    outcome = await bench.generate()
    outcome.finished()
    expect(outcome.chunks, "a Finish and no chunk")


@behaviour.case()
async def max_tokens(bench: Bench) -> None:
    """No more tokens than asked for, and just as many where that is why it ended."""
    for limit in (1, 2, 3, 7, 24):
        outcome = await bench.generate(max_tokens=limit)
        finish = outcome.finished()
        expect(outcome.tokens <= limit, f"{outcome.tokens} tokens where {limit} were allowed")
        if finish.finish_reason == "length":
            expect(outcome.tokens == limit, f"`length` after {outcome.tokens} of {limit} tokens")


@behaviour.case("tokenizer")
async def the_prompt_is_counted(bench: Bench) -> None:
    """`count_tokens` tells what the Finish then tells (ORCH-3014, ORCH-3015)."""
    for prompt in (bench.subject.prompt, "Emoji 🙂🏴‍☠️ and ünïcödé\n\n\ttabs", "x", " ", bench.subject.prefill_prompt):
        await _expect_counted(bench, bench.request(prompt, max_tokens=1))


@behaviour.case("messages")
async def messages(bench: Bench) -> None:
    """A conversation is rendered and answered, and its length known before."""
    turns = [Message("system", "Be brief."), Message("user", "Say hi 🙂")]
    request = GenerateRequest(task_id="t", max_tokens=4, seed=1, messages=turns)
    outcome = await collect(bench.adapter, bench.key(), request)
    expect(outcome.finished().tokens_in > 0, "a conversation of no tokens")
    if "tokenizer" not in bench.subject.lacks:
        await _expect_counted(bench, request)


@behaviour.case("empty_prompt")
async def an_empty_prompt(bench: Bench) -> None:
    """Nothing is a prompt too."""
    outcome = await bench.generate("", max_tokens=4)
    expect(outcome.finished().tokens_in > 0, "an empty prompt of no tokens: nothing to start from")
    expect(outcome.tokens >= 1, "no token for an empty prompt")


@behaviour.case("multibyte")
async def whole_characters(bench: Bench) -> None:
    """Characters of several bytes and tokens arrive whole, in chunks that each are valid text."""
    found = False
    for seed in range(_MULTIBYTE_TRIES):
        outcome = await bench.generate(bench.subject.multibyte_prompt, max_tokens=32, seed=seed)
        outcome.finished()
        for chunk in outcome.chunks:
            expect("\ufffd" not in chunk.text, f"half a character in {chunk.text!r}")
            surrogates = any("\ud800" <= character <= "\udfff" for character in chunk.text)
            expect(not surrogates, f"half a character in {chunk.text!r}")
        found = found or not outcome.text.isascii()
    expect(found, f"no character beyond ASCII in {_MULTIBYTE_TRIES} texts: another `multibyte_prompt` is needed")


@behaviour.case("seeds")
async def seeds(bench: Bench) -> None:
    """The same seed gives the same bytes, other seeds other bytes (ORCH-3045)."""
    texts = [_said(await bench.generate(seed=seed)) for seed in _SEEDS]
    again = [_said(await bench.generate(seed=seed)) for seed in _SEEDS]
    expect(texts == again, f"the same seed gave other bytes: {texts} and {again}")
    expect(len(set(texts)) > 1, f"{len(_SEEDS)} seeds gave one text: {texts[0]}")


@behaviour.case("seeds")
async def company(bench: Bench) -> None:
    """Where an engine is called exact, other tasks beside it change nothing."""
    properties = await bench.adapter.properties()
    alone = _said(await bench.generate())
    if not properties.exact or properties.slots == 1:
        return
    others = [bench.generate(f"{n} " + bench.subject.prompt, seed=n) for n in range(properties.slots - 1)]
    first, *_ = await asyncio.gather(bench.generate(), *others)
    expect(_said(first) == alone, f"alone {alone}, in company {_said(first)}")


@behaviour.case("greedy")
async def sampling(bench: Bench) -> None:
    """Overrides of the profile reach the engine: at temperature 0 the seed decides nothing."""
    greedy = Sampling(temperature=0.0)
    texts = {_said(await bench.generate(seed=seed, sampling=greedy)) for seed in _SEEDS[:3]}
    expect(len(texts) == 1, f"temperature 0 gave {len(texts)} texts: {texts}")


@behaviour.case("stop_strings", "seeds")
async def stop_strings(bench: Bench) -> None:
    """A stop string ends the text before it, is named, and is found across chunks."""
    plain = await bench.generate()
    text = plain.text
    for start, length in ((len(text) // 2, 1), (len(text) // 2, 4), (len(text) // 3, 7)):
        stop = text[start : start + length]
        outcome = await bench.generate(sampling=Sampling(stop=["\u0001never", stop]))
        finish = outcome.finished()
        expected = text[: text.index(stop)]
        expect(outcome.text == expected, f"stop {stop!r}: expected {expected!r}, got {outcome.text!r}")
        got = (finish.finish_reason, finish.stop_sequence)
        expect(got == ("stop", stop), f"stop {stop!r} was told as {got}")


@behaviour.case()
async def an_unknown_profile(bench: Bench) -> None:
    """A sampler profile that does not exist is refused, and not by trying."""
    outcome = await bench.generate(sampler_profile_version="v0-unknown")
    outcome.failed(["INVALID_PARAMS"], retriable=False)


@behaviour.case()
async def another_workload(bench: Bench) -> None:
    """What the pool does not serve is refused."""
    for workload in ("embedding", "rerank"):
        outcome = await bench.generate("q", workload=workload, inputs=["a", "b"])
        outcome.failed(["INVALID_PARAMS"], retriable=False)
    (await bench.generate()).finished()


@behaviour.case("context_limit")
async def too_long_a_prompt(bench: Bench) -> None:
    """A prompt over the context is INVALID_PARAMS, which no retry helps, and harms nobody else (ORCH-3014)."""
    outcome = await bench.generate("word " * (bench.subject.spec.ctx + 64))
    outcome.failed(["INVALID_PARAMS"], retriable=False)
    (await bench.generate()).finished()


@behaviour.case()
async def what_it_lacks(bench: Bench) -> None:
    """What a subject is said to lack it refuses, as a fault of the request, and never makes up."""
    lacks = bench.subject.lacks
    turns = [Message("user", "Say hi")]
    refused = {
        "messages": GenerateRequest(task_id="t", max_tokens=4, seed=1, messages=turns),
        "empty_prompt": bench.request("", max_tokens=4),
    }
    for capability, request in refused.items():
        if capability in lacks:
            (await collect(bench.adapter, bench.key(), request)).failed(["INVALID_PARAMS"], retriable=False)
    if "tokenizer" in lacks:
        try:
            counted = await bench.adapter.count_tokens(bench.request())
        except EngineError as error:
            expect(error.info.code == "INVALID_PARAMS", f"expected INVALID_PARAMS, got {error.info.code}")
        else:
            expect(False, f"{counted} tokens, counted by an engine that cannot")
    if "counted" in lacks:
        told = (await bench.adapter.metrics()).tokens_out_total
        expect(told is None, f"{told} tokens made, told by an engine that does not count them")


async def _expect_counted(bench: Bench, request: GenerateRequest) -> None:
    counted = await bench.adapter.count_tokens(request)
    finish = (await collect(bench.adapter, bench.key(), request)).finished()
    what = (request.prompt or "a conversation")[:60]
    expect(counted == finish.tokens_in, f"{what!r}: counted {counted}, evaluated {finish.tokens_in}")


def _said(outcome: Outcome) -> tuple[str, int]:
    outcome.finished()
    return outcome.text, outcome.tokens
