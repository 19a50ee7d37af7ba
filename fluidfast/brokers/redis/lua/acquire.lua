-- Take a slot under max_concurrency, over all consumers. A slot is named FENCE RUN-ID: its run's batch and field, which
-- no other run has, and its id, which several may have.
--
-- KEYS  1 nothing   2 the slots of the task   3 aio-fluid's key of the run   then that of each slot that is to be freed
-- ARGV  1 slot   2 limit   3 ms after which the slot of a dead worker is free   4 s that aio-fluid sees it
--       5 "mixed" if aio-fluid's consumers run this task too, else "own"
--       6 how many slots of dead workers are to be freed, then they
--       then, if mixed, a MessagePack list: ids of runs of this task that aio-fluid's keys name, but not those of the
--       slots to be freed. Those that are not ours take slots too
-- returns 1: the slot is held. 0: all are taken
--         -1: all are taken, one of them by a run of the same id (in a mixed fleet any run of the id: aio-fluid counts ids)
--         a list of slots of dead workers: nothing is held, call again with them
-- called by  RedisTaskBroker._acquire
local slots, visible = KEYS[2], KEYS[3]
local function id_of(slot)
  return string.match(slot, '^%S+ (.*)$') or slot
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A server that is full refuses a script at its first write, if that could grow: this one frees, and removes nothing.
redis.call('ZREM', slots, '')
local n = tonumber(ARGV[6])
for i = 1, n do
  local slot = ARGV[6 + i]
  local deadline = redis.call('ZSCORE', slots, slot)
  if deadline and tonumber(deadline) <= now then -- else it is free, or its worker has come back
    redis.call('ZREM', slots, slot)
    redis.call('DEL', KEYS[3 + i])
  end
end
local expired = redis.call('ZRANGEBYSCORE', slots, '-inf', now, 'LIMIT', 0, 1000)
if #expired > 0 then return expired end
if not redis.call('ZSCORE', slots, ARGV[1]) then
  if ARGV[5] == 'mixed' and redis.call('EXISTS', visible) == 1 then
    return -1
  end
  local taken = redis.call('ZCARD', slots)
  local foreign = ARGV[7 + n] and cmsgpack.unpack(ARGV[7 + n]) or {}
  local ours = {}
  if #foreign > 0 or taken >= tonumber(ARGV[2]) then
    for _, slot in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
      ours[id_of(slot)] = true
    end
  end
  for _, id in ipairs(foreign) do
    if not ours[id] then
      taken = taken + 1
    end
  end
  if taken >= tonumber(ARGV[2]) then
    return ours[id_of(ARGV[1])] and -1 or 0
  end
end
redis.call('ZADD', slots, now + tonumber(ARGV[3]), ARGV[1])
redis.call('SET', visible, id_of(ARGV[1]), 'EX', ARGV[4])
return 1
