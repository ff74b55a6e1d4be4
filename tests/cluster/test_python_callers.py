"""Python callers with a Serve handle, in a process of their own (the README's example)."""

import json
import subprocess
import sys
import textwrap

import pytest

from tests.cluster.conftest import Service, text_of

CALLER = """
    import asyncio, json, os, sys
    os.environ["RAY_AUTH_MODE"] = "token"
    import ray
    from ray import serve
    from contracts.errors import OrchError

    async def main(request):
        handle = serve.get_app_handle("llorch")
        admission = await handle.submit.remote(request)
        streaming = handle.options(stream=True).stream.remote(request["task_id"])
        events = [event async for event in streaming]
        status = await handle.status.remote(request["task_id"])
        await handle.cancel.remote(request["task_id"])
        try:
            await handle.submit.remote(request | {"ctx": -1})
            refused = None
        except Exception as error:
            cause = getattr(error, "cause", error)
            refused = cause.info.code
        print("RESULT" + json.dumps([admission, events, status, refused]))

    ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
    asyncio.run(main(json.loads(sys.argv[2])))
"""


@pytest.mark.req("ORCH-2001", "ORCH-2003", "ORCH-2006")
def test_submit_stream_status_and_cancel_through_the_handle(service: Service) -> None:
    body = service.body(max_tokens=12)
    caller = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CALLER), service.ray_address, json.dumps(body)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "RESULT" in caller.stdout, caller.stdout + caller.stderr
    admission, events, status, refused = json.loads(caller.stdout.split("RESULT", 1)[1].splitlines()[0])
    assert admission["task_id"] == body["task_id"]
    text = text_of([(event["event"], event["data"]) for event in events])
    assert status["state"] == "finished"
    assert status["tokens_out"] == sum(event["event"] == "token" for event in events) >= 1
    assert refused == "INVALID_PARAMS"
    # The same task by HTTP, under another id, gives the same text.
    seed = next(event["data"]["seed"] for event in events if event["event"] == "started")
    tenant_task = service.submit(max_tokens=12, seed=seed)
    assert text_of(service.events(tenant_task)) == text
