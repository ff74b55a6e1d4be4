"""`python -m adapters.testing.tgi_peer`: run the peer until SIGTERM. It is NOT TGI."""

import asyncio
import os
import shlex
import sys

from adapters.testing.tgi_peer.options import parse_arguments
from adapters.testing.tgi_peer.server import serve


def main() -> None:
    options = parse_arguments([*shlex.split(os.environ.get("LLORCH_TGI_PEER_ARGS", "")), *sys.argv[1:]])
    if options.launch_log:
        with open(options.launch_log, "a", encoding="utf-8") as log:
            log.write(f"{shlex.join(sys.argv[1:])}\n")
    if options.die_at_launch:
        # The real launcher's log goes to stdout, errors of its own and of its shards included.
        sys.stdout.write(f"{options.die_at_launch}\n")
        sys.exit(1)
    asyncio.run(serve(options))


main()
