"""llorch: start a cluster, check its configuration, and use it from the command line.

Exit status: 0 done · 1 refused, failed, or not ready · 2 wrong usage · 3 no server answers ·
130 interrupted.
"""

import hashlib
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import typer
from pydantic import ValidationError
from rich.console import Console

from contracts.api import TaskRequest
from contracts.config import KeyConfig
from orchestrator.cli_pools import add_commands as add_pool_commands
from orchestrator.cli_server import DEV_FILE, Key, Url, finish, server, stderr
from orchestrator.cli_simulate import simulate
from orchestrator.cli_status import status as show_status
from orchestrator.cli_submit import FAILED, USAGE
from orchestrator.cli_submit import submit as run_submit
from orchestrator.cli_up import down, up
from orchestrator.client_tls import CA_VARIABLE, trust
from orchestrator.configfile import ConfigError, LoadedConfig, Problem, development_config, load

KEY_CHARS_MIN = 16

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)


@app.callback()
def trust_servers_of(
    ca: Annotated[
        Path | None,
        typer.Option("--ca", envvar=CA_VARIABLE, help="authorities (PEM) that servers at https URLs are checked by"),
    ] = None,
) -> None:
    """Options of every command that talks to a server."""
    if ca is not None:
        try:
            trust(ca)
        except OSError as error:
            raise typer.BadParameter(f"{ca} holds no authority: {error}", param_hint="--ca") from None
        os.environ[CA_VARIABLE] = str(ca)


def main() -> None:
    """Entry point of the `llorch` command."""
    try:
        app(prog_name="llorch")
    except BrokenPipeError:
        # The reader of our output left (`llorch submit ... | head`): nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Option("--config", help="configuration file; default: a small CPU model")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="HTTP port, over the file's")] = None,
) -> None:
    """Start the cluster and serve until Ctrl-C."""
    loaded = _load(config) if config else development_config()
    for warning in loaded.warnings:
        _show_problem(warning, "warning")
    # Late: reading Ray takes seconds, which every other command would pay for.
    from orchestrator.local_run import run_local

    raise typer.Exit(run_local(loaded, port=port, dev_file=DEV_FILE))


@app.command()
def check(config: Annotated[Path, typer.Argument(help="configuration file")]) -> None:
    """Check a configuration file: every problem at once, each with its place and a hint (ORCH-3030)."""
    loaded = _load(config)
    for warning in loaded.warnings:
        _show_problem(warning, "warning")
    pools = len(loaded.config.pools)
    typer.echo(f"{config}: good ({pools} {'pool' if pools == 1 else 'pools'}, {len(loaded.warnings)} warnings)")


@app.command()
def submit(
    prompt: Annotated[
        str | None,
        typer.Argument(help="the prompt, the user's message with --chat or --system, or the query of a rerank"),
    ] = None,
    url: Url = None,
    key: Key = None,
    chat: Annotated[bool, typer.Option("--chat", help="put the prompt through the model's chat template")] = False,
    system: Annotated[str | None, typer.Option("--system", help="system message; implies --chat")] = None,
    workload: Annotated[str, typer.Option("--workload", help="completion, embedding or rerank")] = "completion",
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="text to embed, or document to rank; may be repeated")
    ] = None,
    model: Annotated[str, typer.Option("--model")] = "smollm2-135m-instruct",
    engine: Annotated[str, typer.Option("--engine")] = "llamacpp",
    ctx: Annotated[int, typer.Option("--ctx", help="context length in tokens")] = 2048,
    priority: Annotated[str, typer.Option("--priority", help="interactive or batch")] = "interactive",
    max_tokens: Annotated[int, typer.Option("--max-tokens")] = 128,
    seed: Annotated[int | None, typer.Option("--seed", help="default: derived from the task's id")] = None,
    deadline_ms: Annotated[int, typer.Option("--deadline-ms")] = 120_000,
) -> None:
    """Submit one task: tokens go to standard output as they come, a summary to standard error.

    Results of an embedding or a rerank are JSON, one to a line. Ctrl-C cancels the task.
    """
    fields: dict[str, Any] = {
        "task_id": str(uuid4()),
        "session_id": str(uuid4()),
        "workload": workload,
        "model_ref": model,
        "engine": engine,
        "ctx": ctx,
        "priority": priority,
        "max_tokens": max_tokens,
        "deadline_ms": deadline_ms,
        "seed": seed,
        # A broken connection is taken up again; Ctrl-C cancels in so many words.
        "cancel_on_disconnect": False,
    }
    if prompt is None and workload != "embedding":
        raise typer.BadParameter("give the text, or the query of a rerank", param_hint="PROMPT")
    if chat or system is not None:
        opening = [] if system is None else [{"role": "system", "content": system}]
        fields["messages"] = [*opening, {"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    if inputs or workload != "completion":
        fields["inputs"] = inputs or []
    try:
        request = msgspec.convert(fields, TaskRequest)
    except msgspec.ValidationError as error:
        stderr().print(f"{error}", style="red", markup=False)
        raise typer.Exit(USAGE) from None
    address, api_key = server(url, key)
    finish(run_submit(address, api_key, request, stderr()))


@app.command()
def status(
    task_id: Annotated[UUID | None, typer.Argument(help="a task; default: the cluster")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show whether the cluster is ready and what it does, or how one task is doing."""
    address, api_key = server(url, key)
    finish(show_status(address, api_key, str(task_id) if task_id else None, Console(), stderr()))


app.command()(simulate)
app.command()(up)
app.command()(down)
add_pool_commands(app)


@app.command("hash-key")
def hash_key(
    name: Annotated[str, typer.Option("--name", help="name of the key, told in logs")] = "my-key",
    tenant: Annotated[str, typer.Option("--tenant", help="whose tasks and sessions it sees")] = "default",
    roles: Annotated[
        list[str] | None, typer.Option("--role", help="submit, operate or observe; may be repeated; default: submit")
    ] = None,
) -> None:
    """Make an API key, or hash the one on standard input: an entry for `auth.keys` or `auth.keys_file`.

    The entry goes to standard output, a key that was made to standard error: `llorch hash-key >> keys.yaml`.
    """
    key = "" if sys.stdin.isatty() else sys.stdin.readline().strip()
    if key and len(key) < KEY_CHARS_MIN:
        stderr().print(f"a key needs at least {KEY_CHARS_MIN} characters", style="red")
        raise typer.Exit(USAGE)
    made = "" if key else f"llk_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256((key or made).encode()).hexdigest()
    try:
        fields = {"name": name, "tenant": tenant, "sha256": digest, "roles": roles or ["submit"]}
        entry = KeyConfig.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        stderr().print(f"--{wrong['loc'][0]}: {wrong['msg']}", style="red", markup=False)
        raise typer.Exit(USAGE) from None
    if made:
        stderr().print(f"key, shown this once: {made}", markup=False, highlight=False, soft_wrap=True)
    typer.echo(f"- {{name: {entry.name}, tenant: {entry.tenant}, roles: [{', '.join(entry.roles)}],")
    typer.echo(f"   sha256: {entry.sha256}}}")


def _load(path: Path) -> LoadedConfig:
    try:
        return load(path)
    except ConfigError as error:
        for problem in error.problems:
            _show_problem(problem, "error")
        for warning in error.warnings:
            _show_problem(warning, "warning")
        count = len(error.problems)
        stderr().print(f"{count} {'problem' if count == 1 else 'problems'}; nothing was started", markup=False)
        raise typer.Exit(FAILED) from None


def _show_problem(problem: Problem, level: str) -> None:
    style = "red" if level == "error" else "yellow"
    place = f"{problem.path}:{problem.line}:{problem.column}"
    err = stderr()
    err.print(f"{place}: {level}: {problem.message}", style=style, markup=False, highlight=False, soft_wrap=True)
    if problem.hint:
        err.print(f"    {problem.hint}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
