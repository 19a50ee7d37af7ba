-- Give back slots under max_concurrency without a settlement: a run's function ended long after the run did, or its
-- lease was lost.
--
-- KEYS  1 the broker's prefix
-- ARGV  1... pairs: task, slot (FENCE RUN-ID, see acquire.lua)
-- returns nothing
-- called by  RedisTaskBroker.free
for i = 1, #ARGV, 2 do
  local id = string.match(ARGV[i + 1], '^%S+ (.*)$') or ARGV[i + 1]
  if redis.call('ZREM', KEYS[1] .. '-ff:slots:' .. ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('DEL', KEYS[1] .. '-task-run-' .. ARGV[i] .. '-' .. id)
  end
end
