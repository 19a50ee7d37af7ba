-- Take a slot under max_concurrency, over all consumers. A slot is named FENCE RUN-ID: its run's batch and field, which
-- no other run has, and its id, which several may have.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 task   2 slot   3 limit   4 ms after which the slot of a dead worker is free   5 s that aio-fluid sees it
--       6 "mixed" if aio-fluid's consumers run this task too, else "own"
--       7... ids of runs of this task that aio-fluid's keys name (mixed): those that are not ours take slots too
-- returns 1 if the slot is held, 0 if all are taken, -1 if all are taken and a run of the same id has one of them. In a
--         mixed fleet one run of an id is all there is room for, since aio-fluid counts ids
-- called by  RedisTaskBroker.acquire
local slots = KEYS[1] .. '-ff:slots:' .. ARGV[1]
local visible = KEYS[1] .. '-task-run-' .. ARGV[1] .. '-'
local function id_of(slot)
  return string.match(slot, '^%S+ (.*)$') or slot
end
local id = id_of(ARGV[2])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A server that is full refuses a script at its first write, if that could grow: this one frees, and removes nothing.
redis.call('ZREM', slots, '')
local ours = {}
for _, slot in ipairs(redis.call('ZRANGEBYSCORE', slots, '-inf', now)) do
  ours[id_of(slot)] = true
  redis.call('ZREM', slots, slot)
  redis.call('DEL', visible .. id_of(slot))
end
if not redis.call('ZSCORE', slots, ARGV[2]) then
  if ARGV[6] == 'mixed' and redis.call('EXISTS', visible .. id) == 1 then
    return -1
  end
  local taken = redis.call('ZCARD', slots)
  if #ARGV > 6 or taken >= tonumber(ARGV[3]) then
    for _, slot in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
      ours[id_of(slot)] = true
    end
  end
  for i = 7, #ARGV do
    if not ours[ARGV[i]] then
      taken = taken + 1
    end
  end
  if taken >= tonumber(ARGV[3]) then
    return ours[id] and -1 or 0
  end
end
redis.call('ZADD', slots, now + tonumber(ARGV[4]), ARGV[2])
redis.call('SET', visible .. id, id, 'EX', ARGV[5])
return 1
