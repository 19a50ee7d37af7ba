"""More than one server: a primary with replicas, Sentinels, a Cluster; and certificates for TLS."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import redis

from kits.servers import HOST, RedisServer, ServerBinary, _answers, _quoted, free_port
from kits.waiting import until

Start = Callable[..., RedisServer]


def ask(server: RedisServer, *command: Any) -> Any:
    """One command, on a connection of its own."""
    with redis.Redis(port=server.port, socket_timeout=10, protocol=2) as client:
        return client.execute_command(*command)


def info(server: RedisServer, section: str) -> dict[str, Any]:
    with redis.Redis(port=server.port, socket_timeout=10) as client:
        return dict(client.info(section))


# -- replicas


async def start_replica(start_server: Start, primary: RedisServer, **options: Any) -> RedisServer:
    """A replica that has what its primary has."""
    before = info(primary, "replication")["connected_slaves"]
    ask(primary, "CONFIG", "SET", "repl-diskless-sync-delay", "0")  # do not wait for other replicas
    replica = start_server(extra=(f"replicaof {HOST} {primary.port}", *options.pop("extra", ())), **options)
    await until(lambda: info(replica, "replication")["master_link_status"] == "up", every=0.02)

    def acknowledged() -> bool:
        with redis.Redis(port=primary.port, socket_timeout=10) as client:
            client.set("probe", 1, px=1)
            return bool(client.wait(1 + before, 500) == 1 + before)

    await until(acknowledged)
    return replica


# -- Sentinels


class Sentinel(RedisServer):
    """A Sentinel that watches one primary as the service "tasks"."""

    def __init__(self, binary: ServerBinary, primary: RedisServer, folder: Path, *, down_after_ms: int) -> None:
        # a server whose file is called so is a Sentinel
        path = folder / ("valkey-sentinel" if binary.kind == "valkey" else "redis-sentinel")
        if not path.exists():
            path.symlink_to(binary.path)
        super().__init__(ServerBinary(binary.kind, str(path), binary.version))
        self._watched = primary.port
        self._down_after_ms = down_after_ms

    def _config(self) -> list[str]:
        return [
            f"bind {HOST}",
            f"port {self._port}",
            f"dir {_quoted(str(self.directory))}",
            'logfile ""',
            f"sentinel monitor tasks {HOST} {self._watched} 2",
            f"sentinel down-after-milliseconds tasks {self._down_after_ms}",
            "sentinel failover-timeout tasks 3000",
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        while not _answers(self.port):
            if self._process.poll() is not None:
                raise self._start_error(f"ended with {self._process.returncode}")
            time.sleep(0.005)

    def state(self) -> dict[str, str]:
        """What it knows of the service."""
        flat = [text.decode() for text in ask(self, "SENTINEL", "MASTER", "tasks")]
        return dict(zip(flat[::2], flat[1::2], strict=True))


async def start_sentinels(
    primary: RedisServer, folder: Path, started: list[RedisServer], *, replicas: int, down_after_ms: int = 500
) -> str:
    """Three Sentinels that know each other and the replicas. Gives the broker's URL. Appends to ``started``."""
    sentinels = [Sentinel(primary.binary, primary, folder, down_after_ms=down_after_ms) for _ in range(3)]
    for sentinel in sentinels:
        started.append(sentinel)
        sentinel.start()

    def know_each_other() -> bool:
        return all(
            (state["num-other-sentinels"], state["num-slaves"]) == ("2", str(replicas))
            for state in (sentinel.state() for sentinel in sentinels)
        )

    await until(know_each_other, every=0.05)
    return f"redis+sentinel://{','.join(f'{HOST}:{sentinel.port}' for sentinel in sentinels)}/tasks"


# -- Cluster

SLOTS = 16384


@dataclass
class Cluster:
    nodes: list[RedisServer]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def node_of(self, slot: int) -> RedisServer:
        """The node that held the slot at the start."""
        return self.nodes[slot * len(self.nodes) // SLOTS]

    def begin(self, slot: int, source: RedisServer, target: RedisServer) -> str:
        """Tell both that a slot is to move. Twice is harmless. Gives the id of the target."""
        source_id, target_id = (str(ask(node, "CLUSTER", "MYID").decode()) for node in (source, target))
        ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        return target_id

    def migrate(self, slot: int, source: RedisServer, target: RedisServer) -> int:
        """Move a slot with all its keys, as `redis-cli --cluster reshard` does. Gives how many keys it moved."""
        target_id = self.begin(slot, source, target)
        moved = 0
        while keys := ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 10):
            ask(source, "MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        for node in (target, source, *self.nodes):
            ask(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)
        return moved


async def start_cluster(start_server: Start, nodes: int = 3) -> Cluster:
    """A Cluster whose nodes hold a third of the slots each."""
    servers = [
        start_server(extra=("cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 2000"))
        for _ in range(nodes)
    ]
    for i, server in enumerate(servers):
        first, end = (-(-SLOTS * k // nodes) for k in (i, i + 1))
        ask(server, "CLUSTER", "ADDSLOTS", *range(first, end))
        ask(server, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
    for server in servers[1:]:
        ask(servers[0], "CLUSTER", "MEET", HOST, server.port)

    def agree() -> bool:
        states = [ask(server, "CLUSTER", "INFO") for server in servers]
        return all(
            "cluster_state:ok" in str(state) and f"cluster_known_nodes:{nodes}" in str(state) for state in states
        )

    await until(agree, every=0.05)
    return Cluster(servers)


# -- TLS


@dataclass
class Authority:
    """A certificate authority in a folder, and what it signs."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self._openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "ca.key")
        self._openssl(
            "req", "-x509", "-new", "-key", "ca.key", "-sha256", "-days", "2", "-subj", "/CN=fluidfast tests",
            "-addext", "basicConstraints=critical,CA:TRUE",
            # Python from 3.13 checks certificates as strictly as RFC 5280 has them
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash",
            "-out", "ca.pem",
        )  # fmt: skip

    @property
    def path(self) -> Path:
        return self.folder / "ca.pem"

    def sign(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """A certificate for these names (``IP:127.0.0.1``, ``DNS:localhost``), and its key."""
        self._openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", f"{name}.key")
        self._openssl("req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        (self.folder / f"{name}.ext").write_text(
            f"subjectAltName={','.join(alternatives)}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-sha256", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60)


def tls_options(certificate: tuple[Path, Path], authority: Authority, *, clients: bool = False) -> dict[str, Any]:
    """Options that make a server listen with TLS too; ``tls_port`` is where. ``clients``: they need certificates."""
    port = free_port()
    return {
        "tls_port": port,
        "extra": (
            f"tls-port {port}",
            f"tls-cert-file {_quoted(str(certificate[0]))}",
            f"tls-key-file {_quoted(str(certificate[1]))}",
            f"tls-ca-cert-file {_quoted(str(authority.path))}",
            f"tls-auth-clients {'yes' if clients else 'no'}",
        ),
    }


@asynccontextmanager
async def tls_in_front(
    server: RedisServer, certificate: tuple[Path, Path], clients: Path | None = None, *, held: float = 0
) -> AsyncIterator[int]:
    """A port where TLS is taken off and passed on, since a test server need not be built with it. ``clients``: the
    authority that their certificates have to be of. ``held``: seconds before the first byte of a connection goes on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    passing: set[asyncio.Task[Any]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task_ = asyncio.current_task()
        assert task_ is not None
        passing.add(task_)
        await asyncio.sleep(held)
        inner = await asyncio.open_connection(HOST, server.port)
        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))
        passing.discard(task_)

    listener = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await until(lambda: not passing)


def tls_url(port: int, host: str = HOST, **options: Any) -> str:
    return f"rediss://{host}:{port}/0?{urlencode(options, quote_via=quote)}"
