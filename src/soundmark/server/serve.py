"""``soundmark serve``: sockets, signals and the event loop around one `Service`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import ipaddress
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn

from soundmark.errors import BundleError, ConfigError
from soundmark.serve_config import ServeConfig
from soundmark.server import logs
from soundmark.server.app import Service
from soundmark.server.door import Door
from soundmark.server.protocol import Connection

BACKLOG = 4096
"""Connections that the system keeps until we take them."""
TIDY_S, MANY = 2.0, 16
LAG_S = 0.1
DRAIN_S = 0.3
"""After SIGTERM, idle connections get this long to learn of it by a 503 instead of a reset."""
MIN_TOKEN = 16

_log = logging.getLogger("soundmark.server")


def check(config: ServeConfig, token: str | None) -> None:
    """Refuse what must not be started.

    Raises:
        ConfigError: other hosts could reach a service without a token, or the token is too short.
    """
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"a token of {len(token)} characters",
            wanted=f"{MIN_TOKEN} or more printable ASCII characters",
            cause="make one with: openssl rand -hex 32",
        )
    if token is None and not loopback(config.host):
        raise ConfigError(
            f"`host` {config.host!r} without a token",
            wanted="a token (--token or $SOUNDMARK_TOKEN), or a loopback address",
            cause="everybody who reaches this machine could use the service",
        )


def loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(config: ServeConfig) -> socket.socket:
    """Return a bound socket.

    Raises:
        ConfigError: the address is taken or not of this machine.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"`host` {config.host!r}: {error.strerror or error}", wanted="an address") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"{config.host} port {config.port}: {error.strerror}",
            wanted="a free port and an address of this machine",
            cause="another program listens there; --port 0 takes a free one" if taken else "",
        ) from None
    sock.set_inheritable(False)
    return sock


def run(
    model: str | None,
    config: ServeConfig,
    *,
    token: str | None = None,
    on_start: Callable[[str, dict[str, object]], None] = lambda *_: None,
    service: Service | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the model again.

    Args:
        model: bundle directory or name; None for the default.
        config: numbers and limits.
        token: bearer token; wanted off loopback.
        on_start: called with the address and what the model is, when requests are taken.
        service: instead of one made from the above, for tests.

    Raises:
        ConfigError: see `check` and `listen`.
        BundleError: the model is refused.
    """
    check(config, token)
    logs.start()
    _allow_sockets(config.max_connections)
    with listen(config) as sock:
        asyncio.run(_run(service or Service(model, config, token=token), sock, on_start))


def _allow_sockets(wanted: int) -> None:
    """Raise the soft limit on descriptors as far as needed and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + 256
    if soft != resource.RLIM_INFINITY and soft < need:
        most = need if hard == resource.RLIM_INFINITY else min(need, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class _Server(uvicorn.Server):
    """uvicorn's server, which tells late requests that it ends instead of cutting them off."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.doors: list[Door] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End in order at the first signal, at once at the second; with status 0, not that of a killed process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to take connections, through a `Door`."""
        await super().startup([])

        def make(since: float) -> Connection:
            kind: type[Connection] = self.config.http_protocol_class  # type: ignore[assignment]
            return kind(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state, since=since
            )

        def opened() -> int:
            return len(self.server_state.connections)

        limits = self.service.config
        self.doors = [
            Door(sock, make, limits=limits, entrance=self.service, opened=opened) for sock in sockets or []
        ]
        self.servers = [*self.doors]  # type: ignore[list-item]

    @property
    def crowd(self) -> int:
        """Connections of every kind."""
        return len(self.server_state.connections) + sum(map(len, self.doors))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests with 503, finish accepted ones, then close."""
        _log.info("ending", extra={"waiting": len(self.service.pool.jobs)})
        for server in self.servers:
            server.close()
        self.service.app.draining = True
        await asyncio.sleep(DRAIN_S)
        await super().shutdown(sockets)


async def _run(
    service: Service, sock: socket.socket, on_start: Callable[[str, dict[str, object]], None]
) -> None:
    config = service.config
    await service.pool.start()
    server = _Server(
        uvicorn.Config(
            service.app,
            http=type("Connection", (Connection,), {"limits": config, "entrance": service}),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(config.keep_alive_s) or 1,
            timeout_graceful_shutdown=round(config.grace_s) or 1,
        ),
        service,
    )
    tidying = asyncio.create_task(_tidy(service, server))
    reloading: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(_reload(service))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    host = f"[{config.host}]" if ":" in config.host else config.host
    url = f"http://{host}:{sock.getsockname()[1]}"
    sock.listen(BACKLOG)
    on_start(url, service.pool.info)
    _log.info("started", extra={"model": service.pool.info["model"], "workers": config.workers})
    try:
        await server.serve(sockets=[sock])
    finally:
        tidying.cancel()
        await service.pool.stop()
    _log.info("ended")


async def _tidy(service: Service, server: _Server) -> None:
    """Give memory back to the system after a rush: connections are cycles of objects, and the C library keeps pages."""
    gc.collect()
    gc.freeze()
    rush = False
    while True:
        for _ in range(
            round(TIDY_S / LAG_S)
        ):  # a rush can be over in less than the time between two tidyings
            due = time.perf_counter() + LAG_S
            await asyncio.sleep(LAG_S)
            service.metrics.lag.observe(max(0.0, time.perf_counter() - due))
            busy = server.crowd > MANY or service.receiver.held > 1 << 20
            rush = rush or busy
        if rush and not busy:
            rush = False
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)


async def _reload(service: Service) -> None:
    """Swap the model; a bad one is logged, and the present one goes on."""
    try:
        await service.pool.reload()
    except BundleError as error:
        service.metrics.swaps.labels("refused").inc()
        _log.error("model refused, the present one goes on", extra={"code": error.code, "saw": str(error)})
    else:
        service.metrics.swaps.labels("done").inc()
        _log.info("model swapped", extra={"model_digest": service.pool.info["model_digest"]})
