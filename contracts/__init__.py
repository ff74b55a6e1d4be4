"""What every part of llama-orch agrees on: API, events, errors, config, engine protocol."""
