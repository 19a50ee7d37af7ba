"""The command line, and the processes of CPU-bound tasks that it is the entry point of."""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import attrs
import click
import msgspec
import pydantic
import pytest
from click.testing import CliRunner, Result
from fastapi import FastAPI
from kits import faces_app
from kits.command_kit import Running, run
from kits.waiting import within

import fluidfast.execute.cpubound as cpubound
from fluidfast import TaskConsumer, TaskManager, TaskRun, TaskState, every, task
from fluidfast.cli.logs import configure_logging, logging_config
from fluidfast.errors import ConfigError, TaskAbortedError, TaskRunError
from fluidfast.http import task_manager_fastapi
from fluidfast.scheduler.cli import DEFAULT_COMMANDS, TaskManagerCLI
from fluidfast.scheduler.cpubound import cpu_bound_command, exec_args, run_in_subprocess, strip_serve

APP = str(Path(faces_app.__file__))
DEFAULT = ["ls", "exec", "serve", "enable", "worker", "queue", "dead"]
seen: list[Any] = []


def a_manager(*tasks: Any, cls: type[TaskManager] = TaskManager) -> TaskManager:
    manager = cls(broker_url=f"memory://{uuid.uuid4().hex}")
    for each in tasks:
        manager.register_task(each)
    return manager


def invoke(app: Any, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> Result:
    return CliRunner().invoke(TaskManagerCLI(app), arguments, env={"COLUMNS": "200", **(env or {})}, **options)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


# -- tasks


class Color(enum.Enum):
    red = "r"
    blue = "b"


class StructParams(msgspec.Struct):
    a: int
    text: str = "none"
    ratio: float = 0.5
    on: bool = False
    many: list[int] = []
    color: Color = Color.red
    when: datetime | None = None
    level: Literal["low", "high"] = "low"
    mapping: dict[str, int] = {}
    some_name: Annotated[int | None, msgspec.Meta(description="said of it")] = None


@dataclass
class DataParams:
    a: int
    text: str = "none"
    ratio: float = 0.5
    on: bool = False
    many: list[int] = field(default_factory=list)
    color: Color = Color.red
    when: datetime | None = None


@attrs.define
class AttrsParams:
    a: int
    text: str = "none"
    ratio: float = 0.5
    on: bool = False
    many: list[int] = attrs.field(factory=list)
    color: Color = Color.red
    when: datetime | None = None


class TypedParams(TypedDict, total=False):
    a: int
    text: str
    ratio: float
    on: bool
    many: list[int]
    color: Color
    when: datetime | None


class PydanticParams(pydantic.BaseModel):
    a: int = pydantic.Field(description="the number")
    text: str = "none"
    ratio: float = 0.5
    on: bool = False
    many: list[int] = []
    color: Color = Color.red
    when: datetime | None = None
    aliased: int = pydantic.Field(default=0, alias="otherName")
    secret: pydantic.SecretStr = pydantic.SecretStr("")


MODELS = [StructParams, DataParams, AttrsParams, TypedParams, PydanticParams]


def recording(model: Any) -> Any:
    @task(name="record", params_model=model)
    async def record(ctx: TaskRun[Any]) -> None:
        """Record the params."""
        seen.append(ctx.params)

    return record


@task(tags=["nightly", "mail"], schedule=every(datetime.resolution * 5_000_000), short_description="[bold]mail[/bold]")
async def tagged(ctx: TaskRun) -> None:
    """Has tags."""


@task
async def mapped(ctx: TaskRun) -> None:
    """Takes any params."""
    seen.append(ctx.params)


@task
async def broken(ctx: TaskRun) -> None:
    """Fails."""
    raise RuntimeError("it is broken")


@task
async def quitter(ctx: TaskRun) -> None:
    """Aborts."""
    ctx.abort("no reason")


# -- what a command line is made of


def some_app() -> FastAPI:
    return task_manager_fastapi(a_manager(mapped), insecure=True)


def some_manager() -> TaskManager:
    return a_manager(mapped)


the_manager = a_manager(mapped)
the_app = task_manager_fastapi(the_manager, insecure=True)


class TestApp:
    @pytest.mark.parametrize(
        "app",
        [
            the_app,
            some_app,
            the_manager,
            some_manager,
            "test_cli:the_app",
            "test_cli:some_app",
            "test_cli:the_manager",
            "test_cli:some_manager",
        ],
        ids=["app", "app maker", "manager", "manager maker", *("by name" for _ in range(4))],
    )
    def test_every_way_to_say_which(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLUID_HTTP_INSECURE", "true")
        result = invoke(app, "ls")
        assert result.exit_code == 0, result.output
        assert "mapped" in result.output
        cli = TaskManagerCLI(app)
        assert cli.get_task_manager().registry["mapped"] is mapped
        assert isinstance(cli.get_task_manager_app(), FastAPI)

    def test_a_callable_is_called_once_a_command(self) -> None:
        calls = []

        def app() -> TaskManager:
            calls.append(1)
            return a_manager(mapped)

        assert invoke(app, "exec", "mapped").exit_code == 0
        assert len(calls) == 1

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("nonsense", "not an import string"),
            ("no_such_module:app", "no module 'no_such_module'"),
            ("test_cli:nothing", "has no 'nothing'"),
        ],
    )
    def test_an_import_string_that_leads_nowhere(self, path: str, said: str) -> None:
        result = invoke(path, "ls")
        assert result.exit_code == 1
        assert said in result.output

    def test_an_application_without_a_manager(self) -> None:
        with pytest.raises(RuntimeError, match="no task manager"):
            TaskManagerCLI(FastAPI()).get_task_manager()

    def test_default_commands(self) -> None:
        assert [command.name for command in DEFAULT_COMMANDS] == DEFAULT
        assert set(TaskManagerCLI(the_manager).commands) == set(DEFAULT)

    def test_commands_of_ones_own(self) -> None:
        @click.command()
        def mine() -> None:
            click.echo("mine")

        cli = TaskManagerCLI(the_manager, commands=[*DEFAULT_COMMANDS, mine], help="an application")
        assert CliRunner().invoke(cli, ["mine"]).output == "mine\n"
        assert "an application" in CliRunner().invoke(cli, ["--help"]).output

    def test_lazy_commands(self) -> None:
        cli = TaskManagerCLI(the_manager, lazy_subcommands={"later": "test_cli:lazy", "bad": "test_cli:seen"})
        assert list(cli.list_commands(click.Context(cli))) == sorted([*DEFAULT, "bad", "later"])
        assert CliRunner().invoke(cli, ["later"]).output == "lazy\n"
        assert "not a click command" in CliRunner().invoke(cli, ["bad"]).output


@click.command()
def lazy() -> None:
    """Comes late."""
    click.echo("lazy")


# -- ls, enable


class TestLs:
    def test_lists_tasks(self) -> None:
        result = invoke(a_manager(tagged, mapped), "ls")
        assert result.exit_code == 0, result.output
        assert "tagged" in result.output
        assert "mapped" in result.output
        assert "every(0:00:05)" in result.output
        assert "mail, nightly" in result.output

    def test_what_a_task_says_is_no_markup(self) -> None:
        assert "[bold]mail[/bold]" in invoke(a_manager(tagged), "ls").output

    @pytest.mark.parametrize("option", ["--tags", "-t"])
    def test_by_tag(self, option: str) -> None:
        output = invoke(a_manager(tagged, mapped), "ls", option, "mail", option, "else").output
        assert "tagged" in output
        assert "mapped" not in output

    def test_a_broker_that_is_not_there(self) -> None:
        manager = TaskManager(broker_url="redis://:s3cret@127.0.0.1:1")
        manager.register_task(mapped)
        result = invoke(manager, "ls")
        assert result.exit_code == 1
        assert "cannot connect" in result.output or "127.0.0.1" in result.output
        assert "s3cret" not in result.output


class TestEnable:
    async def enabled(self, manager: TaskManager) -> bool:
        return (await manager.broker.get_tasks_info("mapped"))[0].enabled

    def test_disables_and_enables(self) -> None:
        manager = a_manager(mapped)
        result = invoke(manager, "enable", "mapped", "--disable")
        assert result.exit_code == 0
        assert "disabled" in result.output
        assert not asyncio.run(self.enabled(manager))
        assert invoke(manager, "enable", "mapped").exit_code == 0
        assert asyncio.run(self.enabled(manager))

    def test_unknown_task(self) -> None:
        result = invoke(a_manager(mapped), "enable", "maped")
        assert result.exit_code == 1
        assert "Task maped not found, did you mean mapped?" in result.output


# -- exec


class TestExec:
    def test_unknown_task(self) -> None:
        result = invoke(a_manager(mapped), "exec", "nope")
        assert result.exit_code == 1
        assert "Task nope not found" in result.output

    def test_success(self) -> None:
        result = invoke(a_manager(mapped), "exec", "mapped", "--run-id", "abc123", "--params", '{"x": [1]}')
        assert result.exit_code == 0, result.output
        assert "abc123" in result.output
        assert "success" in result.output
        assert seen == [{"x": [1]}]

    def test_params_from_stdin(self) -> None:
        assert invoke(a_manager(mapped), "exec", "mapped", "--params", "-", input='{"x": 2}').exit_code == 0
        assert seen == [{"x": 2}]

    def test_failure(self) -> None:
        result = invoke(a_manager(broken), "exec", "broken")
        assert result.exit_code == 1
        assert "it is broken" in result.output

    def test_abort_is_no_failure(self) -> None:
        result = invoke(a_manager(quitter), "exec", "quitter")
        assert result.exit_code == 0
        assert "aborted" in result.output

    @pytest.mark.parametrize("params", ["{", "[1]", "1", '{"a": "x"}', "{}"])
    @pytest.mark.parametrize("model", MODELS[:1] + MODELS[-1:])
    def test_bad_params(self, model: Any, params: str) -> None:
        result = invoke(a_manager(recording(model)), "exec", "record", "--params", params)
        assert result.exit_code == 2
        assert "Invalid value" in result.output
        assert not seen

    def test_bad_params_are_not_repeated(self) -> None:
        result = invoke(a_manager(recording(PydanticParams)), "exec", "record", "--params", '{"secret": "s3cret"}')
        assert result.exit_code == 2
        assert "'a'" in result.output
        assert "s3cret" not in result.output

    def test_lists_tasks_with_help(self) -> None:
        output = invoke(a_manager(mapped, broken), "exec", "--help").output
        assert "mapped" in output
        assert "Takes any params" in output

    @pytest.mark.parametrize("model", MODELS)
    def test_options_of_fields(self, model: Any) -> None:
        result = invoke(
            a_manager(recording(model)), "exec", "record", "--a", "3", "--text", "1.5", "--ratio", "2.5", "--on",
            "--many", "1", "--many", "2", "--color", "b", "--when", "2024-05-06T07:08:09Z",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        (params,) = seen
        values = (
            params
            if isinstance(params, dict)
            else {name: getattr(params, name) for name in TypedParams.__annotations__}
        )
        assert values == {
            "a": 3,
            "text": "1.5",
            "ratio": 2.5,
            "on": True,
            "many": [1, 2],
            "color": Color.blue,
            "when": datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
        }

    @pytest.mark.parametrize("model", MODELS)
    def test_what_is_left_out_is_left_to_the_model(self, model: Any) -> None:
        assert invoke(a_manager(recording(model)), "exec", "record", "--a", "3", "--no-on").exit_code == 0
        (params,) = seen
        if model is TypedParams:
            assert params == {"a": 3, "on": False}
        else:
            assert (params.text, params.many, params.color, params.when) == ("none", [], Color.red, None)

    @pytest.mark.parametrize("model", [StructParams, PydanticParams])
    def test_json_counts_over_options(self, model: Any) -> None:
        run = invoke(a_manager(recording(model)), "exec", "record", "--a", "3", "--text", "x", "--params", '{"a": 4}')
        assert run.exit_code == 0, run.output
        assert (seen[0].a, seen[0].text) == (4, "x")

    def test_kinds_of_options(self) -> None:
        manager = a_manager(recording(StructParams))
        result = invoke(
            manager, "exec", "record", "--a", "1", "--level", "high", "--mapping", '{"k": 2}', "--some-name", "7"
        )
        assert result.exit_code == 0, result.output
        assert (seen[0].level, seen[0].mapping, seen[0].some_name) == ("high", {"k": 2}, 7)
        output = invoke(manager, "exec", "record", "--help").output
        for part in ("[required]", "--on / --no-on", "[high|low]", "[r|b]", "JSON", "said of it", "[default: none]"):
            assert part in output

    @pytest.mark.parametrize(
        ("option", "value"),
        [("--a", "x"), ("--color", "green"), ("--level", "none"), ("--mapping", "{"), ("--when", "x")],
    )
    def test_bad_option(self, option: str, value: str) -> None:
        result = invoke(a_manager(recording(StructParams)), "exec", "record", "--a", "1", option, value)
        assert result.exit_code == 2
        assert option in result.output

    def test_a_field_with_an_alias(self) -> None:
        manager = a_manager(recording(PydanticParams))
        assert invoke(manager, "exec", "record", "--a", "1", "--aliased", "7", "--secret", "s").exit_code == 0
        assert seen[0].aliased == 7
        assert seen[0].secret.get_secret_value() == "s"

    def test_a_field_of_a_reserved_name(self) -> None:
        class Colliding(msgspec.Struct):
            run_id: str
            params: int
            log: bool = False

        manager = a_manager(recording(Colliding))
        raw = '{"run_id": "mine", "params": 3, "log": true}'
        assert invoke(manager, "exec", "record", "--run-id", "theirs", "--params", raw).exit_code == 0
        assert (seen[0].run_id, seen[0].params, seen[0].log) == ("mine", 3, True)

    def test_log(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[dict[str, Any]] = []
        monkeypatch.setattr("fluidfast.cli.configure_logging", lambda **options: given.append(options))
        cli = TaskManagerCLI(a_manager(mapped), log_config={"level": "debug"})
        assert CliRunner().invoke(cli, ["exec", "mapped", "--log"]).exit_code == 0
        cli = TaskManagerCLI(a_manager(mapped), log_config={"app_names": ["mine"]})
        assert CliRunner().invoke(cli, ["exec", "mapped", "--log"]).exit_code == 0
        assert given == [{"level": "debug", "app_names": ["test_cli"]}, {"app_names": ["mine"]}]


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        calls: list[Any] = []
        monkeypatch.setattr("uvicorn.run", lambda app, **options: calls.append((app, options)))
        monkeypatch.setattr("fluidfast.cli.configure_logging", lambda **options: {"configured": options})
        return calls

    def test_defaults_are_those_of_aio_fluid(self, served: list[Any]) -> None:
        assert invoke(the_app, "serve").exit_code == 0
        ((app, options),) = served
        assert app is the_app
        assert (options["host"], options["port"], options["reload"]) == ("0.0.0.0", 8080, False)
        assert options["log_config"] == {"configured": {"app_names": ["test_cli"]}}

    def test_a_bare_manager_gets_an_application(self, served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        refused = invoke(the_manager, "serve")
        assert refused.exit_code == 1
        assert "auth=" in refused.output
        assert "FLUID_HTTP_INSECURE=true" in refused.output
        assert served == []
        monkeypatch.setenv("FLUID_HTTP_INSECURE", "true")
        assert invoke(the_manager, "serve", "--host", "127.0.0.1", "--port", "99").exit_code == 0
        ((app, options),) = served
        assert app.state.task_manager is the_manager
        assert (options["host"], options["port"]) == ("127.0.0.1", 99)

    def test_reload(self, served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        from fluidfast.cli import SERVED, served_app

        monkeypatch.setenv(SERVED, "")
        monkeypatch.setenv("FLUID_HTTP_INSECURE", "true")
        assert invoke("test_cli:some_manager", "serve", "--reload").exit_code == 0
        ((app, options),) = served
        assert (app, options["factory"], options["reload"]) == ("fluidfast.cli:served_app", True, True)
        assert "mapped" in served_app().state.task_manager.registry
        result = invoke(the_app, "serve", "--reload")
        assert result.exit_code == 2
        assert "import string" in result.output


class TestLogs:
    def test_a_record_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        formatter = logging.config.DictConfigurator(logging_config()).configure_formatter(
            logging_config()["formatters"]["plain"]
        )
        record = logging.LogRecord("n", logging.INFO, "", 0, "a\nINFO b \x1b[31m \u202e %s", ("c\r\td",), None)
        line = formatter.format(record)
        assert "\n" not in line
        assert "\x1b" not in line
        assert "\u202e" not in line
        assert line.endswith("a\\nINFO b \\x1b[31m \\u202e c\\r\td")

    @pytest.mark.parametrize(("handler", "lines"), [("json", 1), ("nicejson", 6)])
    def test_json(self, handler: str, lines: int) -> None:
        config = logging_config(log_handler=handler)
        formatter = logging.config.DictConfigurator(config).configure_formatter(config["formatters"][handler])
        text = formatter.format(logging.LogRecord("n", logging.INFO, "", 0, "a\nb %d", (1,), None))
        assert json.loads(text)["message"] == "a\nb 1"
        assert len(text.splitlines()) == lines

    def test_levels_and_names(self) -> None:
        config = logging_config(level="debug", other_level="error", app_names=["mine"])
        assert config["loggers"]["mine"]["level"] == logging.DEBUG
        assert config["root"]["level"] == logging.ERROR
        assert {"fluid", "fluidfast"} <= set(config["loggers"])

    @pytest.mark.parametrize("options", [{"level": "loud"}, {"log_handler": "paper"}])
    def test_what_is_none(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            configure_logging(**options)


# -- CPU-bound tasks


class Listener:
    """The socket that the children of a test talk to."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Any] = asyncio.Queue()
        self.over: asyncio.Queue[None] = asyncio.Queue()

    async def __aenter__(self) -> Listener:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port: int = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.told.put_nowait(json.loads(await reader.readline()))
            await reader.read()
        except ConnectionResetError:
            pass
        finally:
            self.over.put_nowait(None)
            writer.close()


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process was started as `python faces_app.py serve --port 80`, and its children find us."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, APP, "serve", "--port", "80"])
    monkeypatch.setenv("PYTHONPATH", str(Path(APP).parents[2]))
    monkeypatch.setenv("FLUID_BROKER_URL", "memory://")


class TestCommandLine:
    def test_strip_serve(self) -> None:
        assert strip_serve(["python", "main.py", "serve", "--port", "80"]) == ["python", "main.py"]
        assert strip_serve(["python", "main.py"]) == ["python", "main.py"]

    def test_command(self, entry_point: None) -> None:
        manager = a_manager(faces_app.look)
        run = manager.create_task_run("look", secret="canary", run_id="abc")
        assert exec_args(run) == ["exec", "look", "--log", "--run-id=abc", "--params", "-"]
        assert cpu_bound_command(run) == [sys.executable, APP, *exec_args(run)]

    def test_executor(self) -> None:
        assert faces_app.look.run_executor() is not faces_app.look.cpu_executor
        assert a_manager(faces_app.look).launcher is run_in_subprocess
        assert faces_app.look.run_executor(in_process=True) is faces_app.look.cpu_executor


@pytest.mark.usefixtures("entry_point")
class TestProcess:
    async def test_what_a_child_sees(self, capsys: pytest.CaptureFixture[str]) -> None:
        canary = f"canary{uuid.uuid4().hex}"
        manager = a_manager(faces_app.look)
        async with Listener() as listener, manager:
            run = manager.create_task_run("look", port=listener.port, secret=canary, priority="high", run_id="ab12")
            run = run.model_copy(update={"retry_attempt": 2, "from_run_id": "f", "root_run_id": "r"})
            await within(run.execute())
            told = await within(listener.told.get())
        assert run.state is TaskState.success
        assert told["pid"] != os.getpid()
        assert told["argv"] == ["exec", "look", "--log", "--run-id=ab12", "--params", "-"]
        assert told["secret"] == canary
        assert told["seen_by_others"] == []
        assert told["env"] == {"TASK_MANAGER_SPAWN": "true", "OF_THE_TASK": "yes"}
        assert told["run"] == ["ab12", "high", 2, "f", "r"]
        captured = capsys.readouterr()
        assert captured.out == "printed by the child\n"
        assert "complained by the child\n" in captured.err
        assert canary not in captured.err

    @pytest.mark.parametrize("reason", ["enough", ""])
    async def test_abort(self, reason: str) -> None:
        manager = a_manager(faces_app.give_up)
        async with manager:
            run = manager.create_task_run("give_up", secret=reason)
            with pytest.raises(TaskAbortedError):
                await within(run.execute())
        assert run.state is TaskState.aborted

    async def test_failure_names_the_exit_code(self, capfd: pytest.CaptureFixture[str]) -> None:
        manager = a_manager(faces_app.fail)
        async with manager:
            with pytest.raises(TaskRunError, match="exit code 1"):
                await within(manager.execute("fail"))
        assert "RuntimeError: this one fails" in capfd.readouterr().err

    @pytest.mark.parametrize(
        ("port", "said"), [(7, "exit code 7"), (-signal.SIGKILL, "killed by SIGKILL"), (2, "is its entry point a")]
    )
    async def test_how_a_process_ends(self, port: int, said: str) -> None:
        manager = a_manager(faces_app.leave)
        async with manager:
            with pytest.raises(TaskRunError, match=said):
                await within(manager.execute("leave", port=port))

    async def test_a_timeout_ends_the_process(self) -> None:
        manager = a_manager(faces_app.hold._replace(timeout_seconds=0.4))
        run_id = uuid.uuid4().hex
        async with Listener() as listener, manager:
            with pytest.raises(TimeoutError):
                await within(manager.execute("hold", port=listener.port, run_id=run_id))
        assert faces_app.command_lines_with(run_id) == []

    async def test_cancellation_ends_a_process_that_ignores_sigterm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpubound, "TERM_SECONDS", 0.1)
        manager = a_manager(faces_app.hold)
        async with Listener() as listener, manager:
            running = asyncio.create_task(manager.execute("hold", port=listener.port, secret="stubborn"))
            pid = await within(listener.told.get())
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(running)
            assert_gone(pid)

    async def test_an_entry_point_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "orig_argv", ["/no/such/program"])
        manager = a_manager(faces_app.look)
        async with manager:
            with pytest.raises(FileNotFoundError):
                await manager.execute("look")

    @pytest.mark.parametrize("program", ["true", "false"])
    async def test_a_child_that_reads_nothing(self, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "orig_argv", [program])
        manager = a_manager(faces_app.look)
        async with manager:
            run = manager.create_task_run("look", secret="x" * 500_000)
            said = "exit code 0 and has not executed the run" if program == "true" else "exit code 1"
            with pytest.raises(TaskRunError, match=said):
                await within(run.execute())

    async def test_output_of_any_size_is_passed_on(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        program = "import sys; sys.stdout.write('x' * 300_000 + '\\n\\xe9\\nend'); sys.stderr.write('e\\n' * 1000)"
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", program])
        manager = a_manager(faces_app.look)
        async with manager:
            with pytest.raises(TaskRunError, match="has not executed"):
                await within(manager.execute("look"))
        captured = capsys.readouterr()
        assert captured.out == "x" * 300_000 + "\n\xe9\nend"
        assert captured.err == "e\n" * 1000

    async def test_a_consumer_runs_it(self) -> None:
        consumer = a_manager(faces_app.look, faces_app.give_up, faces_app.leave, cls=TaskConsumer)
        assert isinstance(consumer, TaskConsumer)
        async with Listener() as listener:
            await consumer.startup()
            runs = await within(
                asyncio.gather(
                    consumer.queue_and_wait("look", port=listener.port),
                    consumer.queue_and_wait("give_up", secret="enough"),
                    consumer.queue_and_wait("leave", port=3),
                )
            )
            await consumer.shutdown()
        assert [run.state for run in runs] == ["success", "aborted", "failure"]

    async def test_shutdown_ends_the_process(self) -> None:
        consumer = TaskConsumer(broker_url=f"memory://{uuid.uuid4().hex}", stopping_grace_period=0.1)
        faces_app.registered(consumer)
        async with Listener() as listener:
            await consumer.startup()
            await consumer.queue("hold", port=listener.port)
            pid = await within(listener.told.get())
            await within(consumer.shutdown())
            assert_gone(pid)


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_served_application(redis_url: str) -> None:
    """The whole of it: `serve` consumes from Redis, its CPU-bound children get their params, and die with it."""
    env = {**os.environ, "PYTHONPATH": str(Path(APP).parents[2]), "FLUID_BROKER_URL": redis_url}
    env["FLUID_HTTP_INSECURE"] = "true"
    command = [sys.executable, APP, "serve", "--host", "127.0.0.1", "--port", str(free_port())]
    canary = f"canary{uuid.uuid4().hex}"
    async with Listener() as listener:
        server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: ASYNC220
        try:
            manager = faces_app.registered(TaskManager(broker_url=redis_url))
            async with manager:
                run = await within(manager.queue_and_wait("look", port=listener.port, secret=canary, timeout=20))
                assert run.state is TaskState.success
                told = await within(listener.told.get())
                assert told["secret"] == canary
                assert told["seen_by_others"] == []
                await within(listener.over.get())
                run = await within(manager.queue_and_wait("give_up", secret="enough", timeout=20))
                assert run.state is TaskState.aborted
                assert await manager.broker.get_task_aborted(run.id) == "enough"
                await manager.queue("hold", port=listener.port)
                pid = await within(listener.told.get())
                server.kill()
                await within(listener.over.get())
                assert pid != server.pid
                await manager.broker.clear()
        finally:
            server.kill()
            output, _ = server.communicate()
    assert b"printed by the child" in output
    assert b"auth=dependency" in output
    assert canary.encode() not in output


# -- the commands that it shares with ``fluidfast``


class TestShared:
    @pytest.mark.parametrize("name", ["worker", "queue", "dead"])
    def test_it_needs_no_target(self, name: str) -> None:
        shown = invoke(a_manager(mapped), name, "--help").output
        assert "TARGET" not in shown
        assert "fluidfast" not in shown.partition("Options:")[2].replace("fluidfast dead", "")
        assert "exit codes:" in shown

    def test_a_mistyped_command(self) -> None:
        result = invoke(a_manager(mapped), "wroker")
        assert result.exit_code == 2
        assert "no command 'wroker', did you mean 'worker'?" in result.output

    def test_queue_work_and_requeue(self, tmp_path: Path, redis_url: str) -> None:
        program = (sys.executable, APP)
        env = {"FLUID_BROKER_URL": redis_url}
        queued = run("queue", "fail", cwd=tmp_path, program=program, **env)
        assert (queued.returncode, queued.stderr) == (0, "")
        assert queued.stdout.startswith("queued 1 run of 'fail' on redis://")
        assert (
            "this application has no task 'fial', did you mean 'fail'?"
            in run("queue", "fial", cwd=tmp_path, program=program, **env).stderr
        )
        with Running("worker", "--processes", "2", cwd=tmp_path, program=program, **env) as worker:
            worker.wait_for("RuntimeError: this one fails")
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0
        listed = run("dead", "list", "--json", cwd=tmp_path, program=program, **env)
        assert [json.loads(line)["task"] for line in listed.stdout.splitlines()] == ["fail"]
        purged = run("dead", "purge", "--all", cwd=tmp_path, program=program, **env)
        assert purged.stdout.startswith("1 removed on redis://")
