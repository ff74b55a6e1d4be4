"""A toy language model: seeded, exact, with a vocabulary that has characters of one to four bytes.

Scores of the next token are hashes of the prompt, the last two tokens and the candidate. The text means nothing;
that the sampler's parameters act on it as on a real model's scores is the point. Only the standard library is used,
and no sum depends on what else is computed, so a seed gives the same text wherever and beside whatever it runs.
"""

import hashlib
import math
import re
import struct
from collections.abc import Sequence

_WORDS = "the river runs to sea and keeps every secret of stone light wind under old bridge where a boat waits for rain"
_OTHERS = (
    "é",
    "ß",
    " naïve",
    "日",
    "本",
    "語",
    "Ω",
    "ж",
    " мир",
    "🌊",
    "👩‍🔬",
    "\n",
    ".",
    ",",
    "!",
    " café",
    " 東京",
    "e\u0301",
)
VOCABULARY = tuple(f" {word}" for word in _WORDS.split()) + _OTHERS
#: Ends the text.
EOS = len(VOCABULARY)

_TOKEN = re.compile(r"\s*\w{1,6}|\s*[^\w\s]|\s+")
_MASK = 2**64 - 1


def tokenize(text: str) -> list[str]:
    """The tokens of a prompt: bits of words, marks, white space."""
    return _TOKEN.findall(text)


class Sampling:
    """What a request asks of the sampler; defaults do nothing."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
    ) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.repetition_penalty = repetition_penalty
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty


class Text:
    """One text under way."""

    def __init__(self, prompt: str, max_tokens: int, seed: int, sampling: Sampling, stop_words: Sequence[str]) -> None:
        self._root = _hash(prompt.encode())
        self._seed = seed
        self._sampling = sampling
        self._stops = [stop for stop in stop_words if stop]
        self._left = max_tokens
        self._made: list[int] = []
        self._counts: dict[int, int] = {}
        self._text = ""
        self.log_prob = 0.0
        self.finish_reason = ""

    def step(self) -> str:
        """The text of the next token; `finish_reason` is set with the last one."""
        token, log_prob = self._sample()
        self.log_prob += log_prob
        self._left -= 1
        if token == EOS:
            self.finish_reason = "stop"
            return ""
        self._made.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        piece = VOCABULARY[token]
        before = len(self._text)
        self._text += piece
        # The stop string stays in the text, as TensorRT-LLM leaves it.
        if any(self._text.find(stop, max(0, before - len(stop))) >= 0 for stop in self._stops):
            self.finish_reason = "stop"
        elif self._left <= 0:
            self.finish_reason = "length"
        return piece

    def _sample(self) -> tuple[int, float]:
        scores = self._scores()
        order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
        if self._sampling.top_k > 0:
            order = order[: self._sampling.top_k]
        temperature = max(self._sampling.temperature, 1e-6)
        top = scores[order[0]]
        weights = [math.exp((scores[token] - top) / temperature) for token in order]
        total = math.fsum(weights)
        kept, mass = [], 0.0
        for token, weight in zip(order, weights, strict=True):
            kept.append((token, weight))
            mass += weight
            if mass >= self._sampling.top_p * total:
                break
        draw = _hash(struct.pack("<QQ", self._seed & _MASK, len(self._made))) / 2**64 * mass
        for token, weight in kept:
            draw -= weight
            if draw < 0:
                return token, math.log(weight / total)
        token, weight = kept[-1]
        return token, math.log(weight / total)

    def _scores(self) -> list[float]:
        """A score per candidate, penalised for what the text has already."""
        context = _hash(struct.pack("<Q2q", self._root, *([-1, -1, *self._made][-2:])))
        chosen = self._sampling
        scores = []
        for token in range(EOS + 1):
            bits = (context ^ (token * 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & _MASK
            bits = (bits ^ (bits >> 31)) * 0x94D049BB133111EB & _MASK
            score = (bits >> 11) / 2**53 * 6.0
            if token == EOS:
                score -= 3.0  # or the text would be short
            count = self._counts.get(token, 0)
            if count:
                score = score / chosen.repetition_penalty if score > 0 else score * chosen.repetition_penalty
                score -= chosen.presence_penalty + count * chosen.frequency_penalty
            scores.append(score)
        return scores


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
