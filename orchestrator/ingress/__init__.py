"""The HTTP side: authentication, validation, SSE and error mapping, over a `contracts.gateway.Gateway`."""
