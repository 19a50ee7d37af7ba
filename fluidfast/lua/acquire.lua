-- A slot under max_concurrency, over all consumers.
--
-- KEYS  1 the broker's prefix
-- ARGV  1 task   2 run id   3 limit   4 ms after which the slot of a dead worker is free   5 s that aio-fluid sees it
--       6... ids of runs of this task that aio-fluid's keys name (fleet=mixed): those that are not ours take slots too
-- returns 1 if the slot is held, 0 if all are taken
-- called by  RedisTaskBroker.acquire
local slots = KEYS[1] .. '-ff:slots:' .. ARGV[1]
local visible = KEYS[1] .. '-task-run-' .. ARGV[1] .. '-'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- A server that is full refuses a script at its first write, if that could grow: this one frees, and removes nothing.
redis.call('ZREM', slots, '')
local ours = {[ARGV[2]] = true}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', slots, '-inf', now)) do
  ours[id] = true
  redis.call('ZREM', slots, id)
  redis.call('DEL', visible .. id)
end
local foreign = 0
for i = 6, #ARGV do
  if not ours[ARGV[i]] and not redis.call('ZSCORE', slots, ARGV[i]) then
    foreign = foreign + 1
  end
end
if not redis.call('ZSCORE', slots, ARGV[2]) and redis.call('ZCARD', slots) + foreign >= tonumber(ARGV[3]) then
  return 0
end
redis.call('ZADD', slots, now + tonumber(ARGV[4]), ARGV[2])
redis.call('SET', visible .. ARGV[2], ARGV[2], 'EX', ARGV[5])
return 1
