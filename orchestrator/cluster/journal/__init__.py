"""What the scheduler has promised, on disk: a group-commit journal in one folder, and its recovery (ORCH-3051)."""
