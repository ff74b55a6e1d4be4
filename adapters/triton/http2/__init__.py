"""HTTP/2 without TLS (RFC 9113) as far as one request and its streamed response on a connection of their own need it.

A general client would spend many times more on each token than all the rest of its way does.
"""
