"""The server of the Triton adapter: launched or attached to, its model watched, loaded and unloaded (ORCH-3057)."""

import asyncio
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from adapters.attempts import Attempt, Attempts
from adapters.child import ChildProcess
from adapters.engine_server import ATTACHED_NEED, EngineServer, Launch
from adapters.errors import engine_error
from adapters.exactness import in_flight
from adapters.exchange import Address
from adapters.folder import SOCKET_NAME, private_folder
from adapters.http_client import EngineClient
from adapters.triton import calls, repository
from adapters.triton.command import grpc_socket, metrics_socket, server_arguments, server_environment
from adapters.triton.embedding import Computing
from adapters.triton.endpoints import attached_grpc, attached_key, attached_metrics
from adapters.triton.grpc_stream import GrpcClient
from adapters.triton.interface import check_interface
from adapters.triton.options import read_options
from adapters.triton.protocol import ENGINE, ModelConfig, Samples, active_requests, error_of_response, waiting_requests
from adapters.triton.provision import find_engine
from adapters.triton.stubs import ModelProcesses, free_abandoned_memory, free_memory
from contracts.engine import EngineError, EngineSpec
from contracts.gpus import MemoryNeed
from contracts.pools import FaultKind

#: Triton compresses its answers for whoever would take that.
_PLAIN: Final = {"Accept-Encoding": "identity"}


class TritonServer(EngineServer):
    """One server, and of it one model, those that it calls, and the one that counts its tokens."""

    ENGINE = ENGINE

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._options = read_options(spec)
        if self._options.mode != "triton":
            message = f"pool {spec.pool_id}: this adapter runs tritonserver, not {self._options.mode}"
            raise engine_error("INVALID_PARAMS", message, engine=ENGINE, retriable=False)
        self._config = ModelConfig()
        #: The model that counts tokens, None where there is none.
        self._counter: ModelConfig | None = None
        self._models = (spec.model, *self._options.models)
        self._computing = Computing()
        self._dead = False
        self._stubs: ModelProcesses | None = None
        self._ending: asyncio.Task[None] | None = None
        self._grpc: GrpcClient | None = None
        self._metrics_client: EngineClient | None = None

    # ------------------------------------------------------------------ process

    async def memory_need(self) -> MemoryNeed:
        if self._spec.endpoint:
            return ATTACHED_NEED
        spec, root = self._spec, repository.repository_of(self._spec)
        need = await asyncio.to_thread(repository.memory_need, spec, root)
        invariant = await asyncio.to_thread(repository.declares_invariance, root, spec.model)
        return replace(need, slots_max=in_flight(spec, known=invariant))

    async def _prepare(self, spec: EngineSpec) -> Launch:
        root = repository.repository_of(spec)
        await asyncio.to_thread(repository.check_digest, spec, root)
        binary = spec.binary or str(await asyncio.to_thread(find_engine))
        if not Path(binary).is_file():
            message = f"engine binary {binary!r} does not exist; correct `engine_options.binary` or leave it out"
            raise engine_error("POOL_UNREADY", message, engine=ENGINE, retriable=True)
        self._models = tuple(await asyncio.to_thread(repository.models_of, spec, root))
        self._spec = spec = replace(spec, model_path=str(root), binary=binary)
        # Only this user can enter the folder, so only this user can reach the engine.
        folder = private_folder()
        free_abandoned_memory(folder)
        return Launch(
            address=Address(socket_path=str(folder / SOCKET_NAME)),
            argv=(binary, *server_arguments(spec, self._models, folder, self._options.args)),
            env=server_environment(spec),
            headers=_PLAIN,
            folder=folder,
            tree=True,
        )

    def _attachment(self) -> Launch:
        launch = super()._attachment()
        return replace(launch, headers={**launch.headers, **_PLAIN})

    async def _is_ready(self, client: EngineClient) -> bool:
        """The server calls a model ready whose process has died, so that is remembered here."""
        if self._dead:
            return False
        return await client.health("/v2/health/ready") and await client.health(f"/v2/models/{self._spec.model}/ready")

    async def _look_around(self, client: EngineClient) -> None:
        await self._look_at_models(client)
        self._watch_models()
        self._attempts = self._new_attempts(client)
        address = self._metrics_address()
        if address is not None:
            self._metrics_client = EngineClient(ENGINE, address, _PLAIN, error_of_response)
            if self._child is None and not await self._metrics_client.health("/metrics"):
                await self._metrics_client.close()
                self._metrics_client = None  # an attached server may keep them to itself
        if self._options.transport == "grpc" and self._spec.workload == "completion":
            self._grpc = GrpcClient(self._grpc_address(), attached_key(self._spec))

    async def _look_at_models(self, client: EngineClient) -> None:
        self._config = await calls.config(client, self._spec.model)
        check_interface(self._spec, self._config)
        counts = repository.PREPROCESSING in await calls.loaded_models(client)
        self._counter = await calls.config(client, repository.PREPROCESSING) if counts else None

    def _grpc_address(self) -> Address:
        if self._folder is not None:
            return Address(socket_path=grpc_socket(self._folder))
        return attached_grpc(self._spec, self._options)

    def _metrics_address(self) -> Address | None:
        if self._folder is not None:
            return Address(socket_path=metrics_socket(self._folder))
        return attached_metrics(self._spec, self._options)

    def _why_ended(self, child: ChildProcess) -> FaultKind:
        kind = super()._why_ended(child)
        unloadable = any("failed to load" in line for line in child.stderr_tail)
        return "model" if kind == "exit" and unloadable else kind

    def _watch_models(self) -> None:
        if self._child is not None:
            self._stubs = ModelProcesses(self._child.pid, self._on_model_ended)

    def _on_model_ended(self) -> None:
        """A model's process has died. Nothing brings it back and streams would wait for ever: the server is ended."""
        self._dead = True
        if self._child is not None:
            self._ending = asyncio.create_task(self._child.stop(grace_ms=0))

    async def close(self) -> None:
        """See `EngineAdapter`."""
        metrics, stubs = self._metrics_client, self._stubs
        self._grpc = self._metrics_client = self._stubs = None
        folder = self._folder
        if stubs is not None:
            stubs.release()
        await super().close()
        self._dead, self._ending = False, None
        if metrics is not None:
            await metrics.close()
        if folder is not None:
            free_memory(folder)

    # ------------------------------------------------------------------- models

    async def load(self) -> None:
        """Load the model and those beside it, or load them anew from the repository (ORCH-3057). Raises EngineError."""
        client, _ = self._running()
        self._forget_models()
        # Those that the model calls come before it.
        for model in reversed(self._models):
            await calls.load(client, model)
        await self._look_at_models(client)
        self._dead = False
        self._watch_models()

    async def unload(self) -> None:
        """Unload what `load` loads; the engine is not healthy until it is loaded again. Raises EngineError."""
        client, _ = self._running()
        self._forget_models()
        for model in self._models:
            await calls.unload(client, model)

    def _forget_models(self) -> None:
        if self._stubs is not None:
            self._stubs.release()
        self._stubs = None

    # ---------------------------------------------------------------- requests

    def _refusal(self, status: int, body: bytes) -> EngineError:
        return error_of_response(status, body)

    def _new_attempts(self, client: EngineClient) -> Attempts:
        del client
        return Attempts(ENGINE, in_flight(self._spec, known=self._config.batch_invariant), self._alive, self._released)

    async def _released(self, attempt: Attempt) -> bool:
        """Whether the engine works on no more requests than have not ended here.

        TensorRT-LLM's backend tells how many it works on. Other models tell nothing: then no more is known than that
        none waits, and that the server was told to cancel.
        """
        if self._computing.has(attempt):
            return False
        samples = await self._samples()
        active, waiting = active_requests(samples), waiting_requests(samples)
        live = self._attempts.live if self._attempts is not None else 0
        return (active or 0) <= live and (active is not None or not waiting)

    async def _samples(self) -> Samples:
        if self._metrics_client is None:
            return {}
        return await calls.samples(self._metrics_client, self._spec.model)
