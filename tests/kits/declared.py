"""Scripts that may touch no key that they do not declare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fluidfast.brokers.redis import scripts

TALLY = "scripts-that-ran"
"""A set on the server: names of the scripts, if they are counted."""

PROLOGUE = """
local redis = (function(redis, declared, checked)
  for _, key in ipairs(KEYS) do declared[key] = true end
  if #KEYS + #ARGV > %d then error('too many arguments: ' .. #KEYS + #ARGV) end
  for _, name in ipairs({'call', 'pcall'}) do
    checked[name] = function(command, ...)
      local keys = {...}
      local last = 1
      if command == 'TIME' then last = 0 end
      if command == 'EXISTS' or command == 'DEL' or command == 'UNLINK' then last = #keys end
      for i = 1, last do
        if not declared[keys[i]] then error(command .. ' of the undeclared key ' .. keys[i]) end
      end
      return redis[name](command, ...)
    end
  end
  return setmetatable(checked, {__index = redis})
end)(redis, {}, {})
"""
COUNTED = "redis.call('SADD', '%s', '%s')\n"


@contextmanager
def only_declared_keys(*, tally: bool = False) -> Iterator[None]:
    """Put in front of each script what refuses a key that is not in its KEYS, and too many arguments."""
    read = scripts.read
    prologue = PROLOGUE % scripts.MAX_ARGUMENTS

    def guarded(name: str) -> bytes:
        return ((COUNTED % (TALLY, name) if tally else "") + prologue).encode() + read(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "read", guarded)
        scripts.load.cache_clear()
        yield
    scripts.load.cache_clear()
