import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError

import pytest

from fluidfast import settings
from fluidfast.errors import ConfigError

KNOWN = ("fluid_", "ff_", "max_redis", "app_name", "log_level", "redis_default_url")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().startswith(KNOWN):
            monkeypatch.delenv(name)
    settings.get_settings.cache_clear()
    yield
    settings.get_settings.cache_clear()


def test_defaults() -> None:
    found = settings.get_settings()
    assert found == settings.Settings()
    assert found.broker_url == "memory://"
    assert found.max_concurrent_tasks == 5
    assert found.sleep_millis == 1000
    assert found.scheduler_heartbeat_millis == 100
    assert found.stopping_grace_period == 10
    assert found.redis_max_connections == 5
    assert found.app_name == "fluid"
    assert found.log_level == "INFO"


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("FLUID_BROKER_URL", "redis://a", "broker_url", "redis://a"),
        ("REDIS_DEFAULT_URL", "redis://b", "broker_url", "redis://b"),
        ("FLUID_MAX_CONCURRENT_TASKS", " 0 ", "max_concurrent_tasks", 0),
        ("FLUID_SLEEP_MILLIS", "20", "sleep_millis", 20),
        ("fluid_Sleep_Millis", "20", "sleep_millis", 20),
        ("FLUID_SCHEDULER_HEARTBEAT_MILLIS", "1", "scheduler_heartbeat_millis", 1),
        ("FLUID_STOPPING_GRACE_PERIOD", "0.5", "stopping_grace_period", 0.5),
        ("MAX_REDIS_CONNECTIONS", "9", "redis_max_connections", 9),
        ("APP_NAME", "shop", "app_name", "shop"),
        ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
        ("LOG_LEVEL", "", "log_level", "INFO"),
        ("FLUID_SLEEP_MILLIS", "", "sleep_millis", 1000),
        ("FLUID_HTTP_INSECURE", "True", "http_insecure", True),
        ("FLUID_HTTP_INSECURE", "off", "http_insecure", False),
    ],
)
def test_variables(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str, expected: str | float | bool
) -> None:
    monkeypatch.setenv(variable, value)
    assert getattr(settings.get_settings(), field) == expected
    assert getattr(settings, field.upper()) == expected


def test_the_broker_url_comes_before_the_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_DEFAULT_URL", "redis://b")
    monkeypatch.setenv("FLUID_BROKER_URL", "redis://a")
    assert settings.get_settings().broker_url == "redis://a"


def test_upper_case_counts_among_spellings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("fluid_sleep_millis", "1"), ("FLUID_SLEEP_MILLIS", "2"), ("Fluid_Sleep_Millis", "3")):
        monkeypatch.setenv(name, value)
    assert settings.get_settings().sleep_millis == 2


@pytest.mark.parametrize(("prefix", "variable"), [("FF_", "FF_SLEEP_MILLIS"), ("", "SLEEP_MILLIS")])
def test_prefix(monkeypatch: pytest.MonkeyPatch, prefix: str, variable: str) -> None:
    monkeypatch.setenv("FLUID_ENV_PREFIX", prefix)
    monkeypatch.setenv("FLUID_SLEEP_MILLIS", "1")
    monkeypatch.setenv(variable, "2")
    assert settings.get_settings().sleep_millis == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLUID_MAX_CONCURRENT_TASKS", "many"),
        ("FLUID_MAX_CONCURRENT_TASKS", "-1"),
        ("FLUID_SLEEP_MILLIS", "1.5"),
        ("FLUID_SCHEDULER_HEARTBEAT_MILLIS", "0"),
        ("FLUID_STOPPING_GRACE_PERIOD", "soon"),
        ("FLUID_STOPPING_GRACE_PERIOD", "-1"),
        ("FLUID_STOPPING_GRACE_PERIOD", "inf"),
        ("FLUID_STOPPING_GRACE_PERIOD", "nan"),
        ("max_redis_connections", "0"),
        ("FLUID_HTTP_INSECURE", "perhaps"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        settings.get_settings()
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)


def test_cached_and_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings.get_settings()
    monkeypatch.setenv("APP_NAME", "later")
    assert settings.get_settings() is first
    settings.get_settings.cache_clear()
    assert settings.APP_NAME == "later"
    with pytest.raises(FrozenInstanceError):
        first.app_name = "x"  # type: ignore[misc]


def test_repr_keeps_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUID_BROKER_URL", "redis://:hunter2@host")
    assert "hunter2" not in repr(settings.get_settings())


@pytest.mark.parametrize("name", ["NO_SUCH_SETTING", "app_name", "__wrapped__"])
def test_other_attributes_do_not_exist(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(settings, name)


def test_nothing_is_read_at_import() -> None:
    code = "import fluidfast.settings as s; assert s.get_settings.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "FLUID_SLEEP_MILLIS": "bad"})
