"""The contract is run on every kind of broker."""

import pytest


def test_on_memory_on_a_server_and_sharded(request: pytest.FixtureRequest) -> None:
    folder = request.path.parent
    kinds = {
        item.callspec.params["broker_url"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path.parent == folder and hasattr(item, "callspec")
        if "broker_url" in item.callspec.params
    }
    if len(request.session.items) < 100:
        pytest.skip("only a part of it was asked for")
    assert "memory" in kinds
    assert len({kind for kind in kinds if not kind.endswith("-sharded")}) >= 2
    assert any(kind.endswith("-sharded") for kind in kinds)
