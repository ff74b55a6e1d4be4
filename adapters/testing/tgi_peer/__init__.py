"""A peer that speaks TGI's HTTP API and is NOT TGI.

Text Generation Inference has no package that could be installed for tests, so this small server stands in for it. It
was written from the OpenAPI document and the sources of TGI 3.3.6-dev0 (huggingface/text-generation-inference, commit
db931fcf): routes, bodies, frames, error bodies, metric names, and the order in which things are checked. What it
generates follows from the prompt, the seed and the sampling parameters alone; there is no model in it. It says in
`/info` that it is a peer. What it cannot show is how the real server behaves under load, on GPUs and over time.
"""

from adapters.testing.tgi_peer.options import write_launcher

__all__ = ["write_launcher"]
