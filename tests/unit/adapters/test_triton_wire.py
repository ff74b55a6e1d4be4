"""Triton's gRPC messages: what the real server sent is read, requests are well formed, noise is refused."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.triton.frames import Frame, FrameReader
from adapters.triton.protocol import ModelConfig, Tensor, decode_config
from adapters.triton.responses import count_of, text_of
from adapters.triton.wire import WireError, infer_request

DATA = Path(__file__).with_name("data") / "triton"
CONFIG = decode_config((DATA / "config.json").read_bytes())


def recorded(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in (DATA / f"grpc_{name}.txt").read_text().split()]


MESSAGES = [message for name in ("plain", "fails_later", "split", "nothing") for message in recorded(name)]


def frames(messages: list[bytes]) -> list[Frame]:
    reader = FrameReader()
    return [reader.read(message) for message in messages]


@pytest.mark.req("OC-ADAPT-5060")
def test_a_recorded_stream_has_its_text_its_counts_and_its_end() -> None:
    *texts, last = frames(recorded("plain"))
    assert [frame.tokens for frame in texts] == [1] * 6
    assert {frame.tokens_in for frame in texts} == {2}
    assert [frame.reason for frame in texts] == [""] * 5 + ["length"]
    assert all(frame.text.decode() for frame in texts)
    assert not any(frame.final for frame in texts)
    assert (last.final, last.is_response, last.text) == (True, False, b"")


@pytest.mark.req("OC-ADAPT-5060")
def test_recorded_errors_are_told_with_the_end() -> None:
    assert [(frame.error, frame.final) for frame in frames(recorded("fails_first"))] == [
        ("the prompt asked for an error", True)
    ]
    told = frames(recorded("fails_later"))
    assert [bool(frame.error) for frame in told] == [False, False, True]
    assert frames(recorded("too_long"))[0].error.startswith("prompt length")


@pytest.mark.req("OC-ADAPT-5060")
def test_a_reader_reads_each_message_as_a_fresh_one_does() -> None:
    reader = FrameReader()
    for message in [*MESSAGES, *reversed(MESSAGES)]:
        assert reader.read(message) == FrameReader().read(message)


@pytest.mark.req("OC-ADAPT-5060")
@given(st.data())
def test_whatever_comes_is_read_or_refused(data: st.DataObject) -> None:
    reader = FrameReader()
    for _ in range(3):
        message = bytearray(data.draw(st.sampled_from(MESSAGES)))
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(message)))
            message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        try:
            reader.read(bytes(message))
        except WireError:
            continue


@given(st.binary(max_size=300))
def test_noise_is_read_or_refused(noise: bytes) -> None:
    try:
        FrameReader().read(noise)
    except WireError:
        return


@pytest.mark.parametrize("content", [b"\x01", b"\x05\0\0\0four", b"\xff\xff\xff\xff"])
def test_a_string_that_is_cut_short_is_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        text_of(content)


def test_strings_and_counts() -> None:
    assert text_of(b"") == b""
    assert text_of(b"\x02\0\0\0ab\0\0\0\0\x01\0\0\0c") == b"abc"
    assert (count_of(struct.pack("<I", 7)), count_of(struct.pack("<q", -1))) == (7, -1)
    with pytest.raises(WireError):
        count_of(b"\x01")


def tensors(message: bytes) -> dict[str, tuple[str, list[int]]]:
    """Name, type and shape of the inputs of a request, read by the protocol's field numbers."""
    found = {}
    for number, value in fields(message):
        if number == 5:
            parts = dict(fields(value))
            found[parts[1].decode()] = (parts[2].decode(), list(parts[3]))
    return found


def fields(data: bytes) -> list[tuple[int, bytes]]:
    at, found = 0, []
    while at < len(data):
        assert data[at] & 7 == 2, "requests are made of fields with a length"
        number, length, at = data[at] >> 3, data[at + 1], at + 2
        if length > 127:
            length, at = length & 127 | data[at] << 7, at + 1
        found.append((number, data[at : at + length]))
        at += length
    return found


@pytest.mark.req("OC-ADAPT-5060")
def test_a_request_names_its_tensors_and_asks_for_the_end_to_be_marked() -> None:
    inputs = {"text_input": "é", "max_tokens": 5, "seed": 2**63 - 1, "temperature": 0.5, "stop_words": ["a", "bc"]}
    message = infer_request(CONFIG, inputs, ["text_output"])
    assert tensors(message) == {
        "text_input": ("BYTES", [1]),
        "max_tokens": ("INT32", [1]),
        "seed": ("UINT64", [1]),
        "temperature": ("FP32", [1]),
        "stop_words": ("BYTES", [2]),
    }
    raw = [value for number, value in fields(message) if number == 7]
    assert raw == [
        b"\x02\0\0\0\xc3\xa9",
        struct.pack("<i", 5),
        struct.pack("<Q", 2**63 - 1),
        struct.pack("<f", 0.5),
        b"\x01\0\0\0a\x02\0\0\0bc",
    ]
    assert b"triton_enable_empty_final_response\x12\x02\x08\x01" in message
    assert [value for number, value in fields(message) if number == 6] == [b"\x0a\x0btext_output"]


def test_a_model_that_batches_gets_a_batch_of_one() -> None:
    config = ModelConfig(name="m", max_batch_size=8, input=[Tensor("max_tokens", "TYPE_INT32")])
    assert tensors(infer_request(config, {"max_tokens": 1}, [])) == {"max_tokens": ("INT32", [1, 1])}


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"max_tokens": 2**40}, "cannot hold"),
        ({"max_tokens": "many"}, "cannot hold"),
        ({"text_input": "\ud800"}, "cannot hold"),
        ({"nonsense": 1}, "declares no input"),
    ],
)
def test_what_an_input_cannot_hold_is_refused(inputs: dict[str, object], told: str) -> None:
    with pytest.raises(WireError, match=told):
        infer_request(CONFIG, inputs, [])
