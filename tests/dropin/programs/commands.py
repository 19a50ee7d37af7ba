"""The command line of an application."""

from enum import Enum
from typing import Literal

from click.testing import CliRunner
from fluid.scheduler import TaskManager, TaskRun, task, task_manager_fastapi
from fluid.scheduler.cli import DEFAULT_COMMANDS, TaskManagerCLI
from pydantic import BaseModel, Field


class Size(Enum):
    small = "s"
    large = "l"


class Order(BaseModel):
    item: str = Field(description="What to buy")
    amount: int = 1
    gift: bool = False
    size: Size = Size.small
    colours: list[str] = []
    kind: Literal["fast", "slow"] = "slow"
    more: dict[str, int] = {}
    id_or_name: int | str = 0


@task
async def order(ctx: TaskRun[Order]) -> None:
    """Order something"""
    print("ORDER", ctx.params.model_dump_json())


class Reserved(BaseModel):
    log: str = ""
    text: str = ""


@task
async def reserved(ctx: TaskRun[Reserved]) -> None:
    print("RESERVED", ctx.params.model_dump_json())


@task
async def broken(ctx: TaskRun) -> None:
    raise ValueError("broken")


def make():
    manager = TaskManager()
    manager.register_from_dict(globals())
    return task_manager_fastapi(manager)


cli = TaskManagerCLI(make)


def run(*args: str) -> None:
    result = CliRunner().invoke(cli, list(args))
    own = [line for line in result.output.splitlines() if line.startswith(("ORDER", "RESERVED"))]
    print(" ".join(args), "->", result.exit_code, *own)


print(sorted({"exec", "serve", "ls", "enable"} - {command.name for command in DEFAULT_COMMANDS}))
run("ls")
run("ls", "--tags", "none")
run("exec", "order", "--item", "tea")
run("exec", "order", "--item", "tea", "--amount", "3", "--gift", "--size", "l", "--kind", "fast")
run("exec", "order", "--item", "tea", "--colours", "red", "--colours", "blue", "--more", '{"a": 1}')
run("exec", "order", "--item", "tea", "--id-or-name", "bob", "--no-gift")
run("exec", "order", "--params", '{"item": "cake", "amount": 2}')
run("exec", "order", "--item", "tea", "--params", '{"item": "cake"}')
run("exec", "order", "--item", "tea", "--run-id", "abc")
run("exec", "order")
run("exec", "order", "--item", "tea", "--amount", "many")
run("exec", "order", "--item", "tea", "--size", "medium")
run("exec", "order", "--item", "tea", "--more", "not json")
run("exec", "order", "--item", "tea", "--nope", "1")
run("exec", "reserved", "--text", "a", "--params", '{"log": "b"}')
run("exec", "broken")
run("exec", "nonesuch")
run("enable", "order", "--disable")
run("enable", "order")
run("enable", "nonesuch")
help_text = CliRunner().invoke(cli, ["exec", "order", "--help"]).output
for text in ("--item", "What to buy", "--amount", "--gift", "--colours", "--params", "--run-id", "--log"):
    print(text, text in help_text)
