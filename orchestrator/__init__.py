"""llama-orch: an honest queue and byte-exact token streams in front of language-model engines."""
